"""Letters that come in any order, twice, or never: each is read once at most, in order, and nothing waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.twins.feeds import GAP_S_MAX, Arrived, Feeds, Looked, Read
from croft.twins.letters import Box, Feed, digest_of

FEED = Feed(Box("c", "t"), "d")
LETTERS_MAX = 12


def digest(number: int) -> bytes:
    return digest_of(str(number).encode()) if number else b""


@given(st.lists(st.integers(1, LETTERS_MAX) | st.just("look"), max_size=60), st.integers(0, LETTERS_MAX))
def test_each_letter_is_read_once_in_order_and_every_gap_is_counted(steps: list[int | str], restarts_at: int) -> None:
    feeds, now, read, missing = Feeds(), 0.0, list[int](), 0
    came: set[int] = set()
    for at, step in enumerate(steps):
        if at == restarts_at:
            resumed = Feeds()
            resumed.resume(FEED, feeds.next_of(FEED), feeds.last_of(FEED))
            feeds = resumed
        if isinstance(step, int):
            came.add(step)
            effects = feeds.handle(Arrived(FEED, step, digest(step), digest(step - 1), now))
        else:
            now += GAP_S_MAX
            effects = feeds.handle(Looked(now))
        for effect in effects:
            assert isinstance(effect, Read)
            read.append(effect.sequence)
            missing += effect.missing
    assert read == sorted(set(read)) and set(read) <= came
    assert not read or missing == read[-1] - len(read)


@given(st.permutations(range(1, LETTERS_MAX + 1)))
def test_all_that_come_are_read(order: list[int]) -> None:
    feeds = Feeds()
    read = [
        effect.sequence
        for number in order
        for effect in feeds.handle(Arrived(FEED, number, digest(number), digest(number - 1), 0.0))
    ]
    assert read == sorted(order)
