"""The line that tells how far a map is."""

from __future__ import annotations

import io
import operator

from rich.console import Console

from croft.client.map_feed import Zipped
from croft.client.progress import shown


def told(total: int | None, *, is_terminal: bool) -> tuple[list[int], str]:
    file = io.StringIO()
    done: dict[str, int] = {"bob": 0, "cyd": 0}

    taken = []
    console = Console(file=file, force_terminal=is_terminal)
    for number in shown(iter([1, 2, 3]), lambda: done, "squares", total, console):
        done["bob" if number % 2 else "cyd"] += 1
        taken.append(number)
    return taken, file.getvalue()


def test_results_pass_and_the_line_tells_how_many_are_done_and_by_how_many_peers() -> None:
    results, text = told(3, is_terminal=True)

    assert results == [1, 2, 3]
    assert "squares" in text and "3/3" in text and "2 peers" in text


def test_a_total_that_nobody_knows_is_left_open() -> None:
    _, text = told(None, is_terminal=True)
    assert "3/?" in text


def test_off_a_terminal_nothing_is_shown() -> None:
    assert told(3, is_terminal=False) == ([1, 2, 3], "")


def test_the_number_of_calls_is_known_when_every_input_tells_its_length() -> None:
    assert operator.length_hint(Zipped([range(5), [1, 2, 3]]), -1) == 3
    assert operator.length_hint(Zipped([range(5), (one for one in "ab")]), -1) == -1
