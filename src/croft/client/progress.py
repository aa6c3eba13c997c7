"""A line on the terminal that tells how far a map is: tasks done, how many a second, time left, who works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R")

LOOKS_PER_S = 5.0
SPEED_OVER_S = 30.0


def shown(
    results: Iterator[R],
    done_by: Callable[[], Mapping[str, int]],
    label: str,
    total: int | None,
    console: Console | None = None,
) -> Iterator[R]:
    """Passes `results` on, and shows how far they are while somebody takes them; only on a terminal.

    `done_by` gives the tasks done by each peer; `total`: how many there are, None if nobody knows.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Peers(ProgressColumn):
        """Who works."""

        def render(self, task: Task) -> Text:
            peers = {name: count for name, count in done_by().items() if count}
            speed = "" if not task.speed else f"{task.speed:,.1f}/s · "
            return Text(f"{speed}{len(peers)} peer{'' if len(peers) == 1 else 's'}")

    console = console or Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Peers(), Remaining()
    with Progress(
        *columns,
        console=console,
        transient=not console.is_terminal,
        disable=not console.is_terminal,
        refresh_per_second=LOOKS_PER_S,
        speed_estimate_period=SPEED_OVER_S,
    ) as progress:
        task = progress.add_task(label, total=total)
        for result in results:
            # What is done counts, not what was taken: whoever takes results slowly sees the peers ahead.
            progress.update(task, completed=sum(done_by().values()))
            yield result
        progress.update(task, completed=sum(done_by().values()))
