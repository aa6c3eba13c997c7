"""What a map submits when, and how its results are merged: the part that both kinds of `MapResult` share."""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from croft.client.task_future import TaskFuture
from croft.client.task_session import TaskSession
from croft.errors import Usage

MAP_AHEAD_TASKS = 10_000
MAP_AHEAD_FIRST = 256
"""Tasks that a map keeps unfinished ahead of the value asked for, whatever the length of its input."""
MAP_AHEAD_BYTES = 64 << 20
"""What arguments of these take, and results will, as far as can be told. A few tasks are ahead whatever they take."""
MAP_AHEAD_TASKS_MIN = 8
REDUCE_FAN_IN = 8


class MapFeed:
    """The tasks of one map that are ahead of what was taken."""

    def __init__(self, session: TaskSession, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> None:
        self.session = session
        self.ahead: deque[TaskFuture] = deque()
        self._function = function
        self._calls = calls
        self._taken = 0
        self._stays = True
        """Whether results may stay at their peers, since nobody has asked for them yet."""

    def want_each(self) -> None:
        """All results are waited for: they are to come here."""
        self._stays = False
        self.session.want_all(self.ahead)

    def took(self, count: int = 1) -> None:
        """So many more results were taken."""
        self._taken += count

    def cancel(self) -> None:
        """Nobody waits for what is ahead any more."""
        for future in self.ahead:
            future.cancel()
        self.ahead.clear()

    def feed(self, elsewhere: int = 0) -> None:
        """Submits what should be ahead now; so many that are ahead too are not in `ahead` any more."""
        # Grows with what was taken, so that an endless input of costly items is not read far ahead at once.
        ahead = min(MAP_AHEAD_TASKS, MAP_AHEAD_FIRST + 4 * self._taken)
        if len(self.ahead) + elsewhere > ahead * 3 // 4 and self._taken:
            return
        while len(self.ahead) + elsewhere < max(MAP_AHEAD_TASKS_MIN, self._room(ahead, elsewhere)):
            call = next(self._calls, None)
            if call is None:
                return
            self.ahead.append(self.session.submit(self._function, call, {}, stays=self._stays))

    def _room(self, ahead: int, elsewhere: int) -> int:
        """How many tasks may be ahead."""
        results_bytes = self.session.result_bytes * (len(self.ahead) + elsewhere)
        return ahead if self.session.open_bytes + results_bytes < MAP_AHEAD_BYTES else 0

    def merging(self, merge: Callable[[Any, Any], Any], fan_in: int) -> Generator[TaskFuture, None, TaskFuture]:
        """Merges all results on the peers, in a tree. Each future that comes is to be done before one goes on.

        The last one, which is returned, stands for all. Raises Usage if there is nothing to merge.
        """
        if fan_in < 2:
            raise Usage("a merge needs at least two values", remedy="Leave `fan_in` out, or make it 2 or more.")
        # A partial of the standard library's own: every peer has it.
        merge_all = functools.partial(functools.reduce, merge)
        levels: list[deque[TaskFuture]] = []

        def merged(group: list[TaskFuture]) -> TaskFuture:
            # Small values come here and go there again; large ones are merged where they lie.
            return self.session.submit(merge_all, (group,), {}, stays=True)

        def add(value: TaskFuture, depth: int) -> Iterator[TaskFuture]:
            if depth == len(levels):
                levels.append(deque())
            levels[depth].append(value)
            # Two groups wait before one is merged, so that the peers are busy while this side waits for the first.
            if len(levels[depth]) >= 2 * fan_in:
                group = [levels[depth].popleft() for _ in range(fan_in)]
                yield from group
                yield from add(merged(group), depth + 1)

        while self.ahead:
            value = self.ahead.popleft()
            yield value
            yield from add(value, 0)
            self.took()
            self.feed()
        if not levels:
            raise Usage("there is nothing to merge", remedy="Map over at least one item.")
        rest: list[TaskFuture] = []
        for level in levels:
            # Deeper levels hold what came before.
            rest = [*level, *rest]
        while len(rest) > 1:
            rest = [merged(rest[at : at + fan_in]) for at in range(0, len(rest), fan_in)]
        return rest[0]


class Zipped:
    """Calls out of several inputs, and how many they are if all inputs tell."""

    def __init__(self, iterables: Sequence[Iterable[Any]]) -> None:
        self._iterables = iterables

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self._iterables, strict=False)

    def __length_hint__(self) -> int:
        sizes = [operator.length_hint(one, -1) for one in self._iterables]
        known = [size for size in sizes if size >= 0]
        return min(known) if known and len(known) == len(sizes) else NotImplemented


def name_of(function: object) -> str:
    """What to call a function's job."""
    return getattr(function, "__qualname__", type(function).__name__)
