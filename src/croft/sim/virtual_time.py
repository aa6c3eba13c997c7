"""An asyncio event loop on which time passes only when everything waits: then it jumps to the next timer.

A run depends on nothing but the program and the seed, an hour takes as long as its events do, and a program
that waits for what can never happen is told so at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEPS_MAX = 50_000_000
TASKS_LISTED_MAX = 20
CLOCK_RESOLUTION_S = 1e-9


class Deadlock(RuntimeError):
    """Tasks wait, but nothing is scheduled that could wake one. Lists who waits where."""


class LimitReached(RuntimeError):
    """The run took more virtual time or more steps than it was allowed."""


class _JumpingSelector(selectors.BaseSelector):
    """Never sleeps and never reports a file: it moves the clock instead."""

    def __init__(self, limit_virtual_s: float, steps_max: int) -> None:
        self.now = 0.0
        self._limit_virtual_s = limit_virtual_s
        self._steps_left = steps_max
        self._files: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        # Only the loop's own wake-up pipe comes here, and it is not needed: there are no threads.
        key = selectors.SelectorKey(fileobj, -1, events, data)
        self._files[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._files.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._files

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise LimitReached(f"no end after the allowed number of steps, at {self.now:.3f} s")
        if timeout is None:
            _raise_deadlock(self.now)
        self.now += max(0.0, timeout)
        if self.now > self._limit_virtual_s:
            raise LimitReached(f"no end within {self._limit_virtual_s:g} s of virtual time\n{_waiting()}")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop itself; `time()` starts at zero."""

    def __init__(self, limit_virtual_s: float, steps_max: int) -> None:
        self._jumping = _JumpingSelector(limit_virtual_s, steps_max)
        super().__init__(self._jumping)
        self._clock_resolution = CLOCK_RESOLUTION_S

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Threads know nothing of virtual time."""
        raise AssertionError("no threads in simulation: go through ports.Offload or ports.Database")


def run(
    main: Callable[[Random], Coroutine[Any, Any, T]],
    *,
    seed: int = 0,
    limit_virtual_s: float = 3_600.0,
    steps_max: int = STEPS_MAX,
) -> T:
    """Runs `main(Random(seed))` to its end on virtual time and returns its result.

    Raises:
        Deadlock: everything waits and nothing can happen any more.
        LimitReached: after `limit_virtual_s` of virtual time, or `steps_max` turns of the loop.
    """
    loop = VirtualLoop(limit_virtual_s, steps_max)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main(Random(seed)))
    finally:
        try:
            _cancel_all(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    """Lets every task that is left clean up; one that refuses to end is abandoned."""
    tasks = _by_name(asyncio.all_tasks(loop))
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    try:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    except (Deadlock, LimitReached):
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # the first error says it all


def _by_name(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    # all_tasks is a set: without an order, the clean-up would differ from run to run.
    return sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name()))


def _raise_deadlock(now: float) -> NoReturn:
    raise Deadlock(f"at {now:.3f} s everything waits and nothing is scheduled\n{_waiting()}")


def _waiting() -> str:
    loop = asyncio.get_event_loop_policy().get_event_loop()
    lines = []
    for task in _by_name(asyncio.all_tasks(loop))[:TASKS_LISTED_MAX]:
        place = ""
        awaited: Any = task.get_coro()
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None)
            if frame is not None:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
            awaited = getattr(awaited, "cr_await", None)
        lines.append(f"  {task.get_name()}: {place}")
    return "\n".join(lines)
