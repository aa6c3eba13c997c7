"""Functions that carry how they are to run on the peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypedDict, TypeVar, Unpack

from croft.control.quantities import duration_s, size_bytes
from croft.errors import Usage

RETRIES_MAX = 1_000
CPUS_MAX = 1_024
PRIORITY_MAX = 100

P = ParamSpec("P")
R = TypeVar("R")


class How(TypedDict, total=False):
    """Keyword arguments of every call that runs a function on the peers; each may be left out.

    Attributes:
        on, avoid: names or ids of peers to use only, or not to use.
        memory: what the tasks of one peer may use together, such as "2G"; 0: what the lender gives.
        time: limit for one task, in seconds or such as "5m"; 0: none.
        needs: devices, such as ["camera"]: only peers that lend all of them, held by this job alone meanwhile.
        verify: `vote:3` has each task done by peers of different people until two agree; `spot:5%` has that share of
            each peer's results done again by another, and more of those by peers that have no record yet.
        labels: only peers that have all of these words among their `labels`.
        cpus: how many processors one task keeps busy, for programs that use several; 1 if it is left out.
        retries: how often a task that raised, died or took too long is run again before that counts.
        priority: what of your own work goes first where it meets: higher does. It means nothing to the work of others.
        environment: what it imports from: lock files, folders of projects, wheels, or names of what is installed here.
        deterministic: True: the same call gives the same result wherever it runs, so what it raised is not tried again
            by `retries`. False: it does not, or it has effects: results cannot be verified, no copy of a task runs
            elsewhere while it runs, and values come here at once, as they could not be made again. What was lost with
            its peer runs again in any case.
        near: stored files or folders, such as "photos": peers that hold most of them are asked first. A stored file
            among the arguments does that by itself.
        logs: whether what each task prints comes home with its value: to this program's standard error, with peer and
            number of the task, and as `log` of its future; of a task that fails it comes in any case.
    """

    on: Sequence[str]
    avoid: Sequence[str]
    memory: str | int
    time: str | float
    needs: Sequence[str]
    verify: str
    labels: Sequence[str]
    retries: int
    cpus: int
    priority: int
    environment: str | Sequence[str]
    logs: bool
    deterministic: bool
    near: str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Wants:
    """Where and within which limits a function is to run; what is empty or 0 is left to the peers.

    Attributes:
        on, avoid: names or ids of peers. memory_bytes: of the tasks of one peer together. time_s: of one task.
        needs: devices. labels: words of peers. retries, cpus: of one task. priority: among one's own jobs. environment:
            where what it imports comes from. logs: whether what it prints comes home. deterministic: see `How`; None:
            nobody has said. near: stored files.
    """

    on: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    memory_bytes: int = 0
    time_s: float = 0.0
    needs: tuple[str, ...] = ()
    verify: str = ""
    labels: tuple[str, ...] = ()
    retries: int = 0
    cpus: int = 1
    priority: int = 0
    environment: tuple[str, ...] = ()
    logs: bool = False
    deterministic: bool | None = None
    near: tuple[str, ...] = ()

    @staticmethod
    def of(function: Callable[..., R] | None, how: How) -> Wants:
        """What is wanted of a function: by the call, else by its own decorator. Raises Usage."""
        own = wants_of(function)
        logs, verify = how.get("logs", own.logs), how.get("verify", "") or own.verify
        if logs and verify:
            raise Usage("results with logs cannot be verified: no two runs print the same", remedy="Leave one out.")
        deterministic = how.get("deterministic", own.deterministic)
        if verify and deterministic is False:
            raise Usage(
                "results of what is not deterministic cannot be verified: honest peers would differ",
                remedy="Leave out `verify`, or `deterministic=False`.",
            )
        return Wants(
            names_of(how.get("on", ())) or own.on,
            names_of(how.get("avoid", ())) or own.avoid,
            size_bytes(how.get("memory", 0)) or own.memory_bytes,
            duration_s(how.get("time", 0)) or own.time_s,
            names_of(how.get("needs", ())) or own.needs,
            verify,
            names_of(how.get("labels", ())) or own.labels,
            _retries(how.get("retries", own.retries)),
            _cpus(how.get("cpus", own.cpus)),
            _priority(how.get("priority", own.priority)),
            names_of(how.get("environment", ())) or own.environment,
            logs,
            deterministic,
            names_of(how.get("near", ())) or own.near,
        )


def _cpus(count: int) -> int:
    if not 1 <= count <= CPUS_MAX:
        raise Usage(f"{count} processors for one task", remedy=f"Give a whole number from 1 to {CPUS_MAX}.")
    return count


def _priority(priority: int) -> int:
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise Usage(f"priority {priority}", remedy=f"Give a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}.")
    return priority


def _retries(count: int) -> int:
    if not 0 <= count <= RETRIES_MAX:
        raise Usage(f"{count} retries", remedy=f"Give a number from 0 to {RETRIES_MAX}.")
    return count


NOTHING = Wants()


class Task(Generic[P, R]):
    """A function with wants, made by `croft.task`. Called directly, it runs here like any function."""

    def __init__(self, function: Callable[P, R], wants: Wants) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.wants = wants

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function in this program."""
        return self.function(*args, **kwargs)


def task(**how: Unpack[How]) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Decorates a function with how it is to run whenever it is given to a grid. Arguments as for `Grid.map`.

    Raises:
        Usage: a size or a time that is none.
    """
    wants = Wants.of(None, how)
    return lambda function: Task(function, wants)


def wants_of(function: Callable[..., R] | None) -> Wants:
    """What a function's own decorator says."""
    return function.wants if isinstance(function, Task) else NOTHING


def plain(function: Callable[..., R]) -> Callable[..., R]:
    """The function itself, without its wants: what travels."""
    return function.function if isinstance(function, Task) else function


def names_of(names: Sequence[str]) -> tuple[str, ...]:
    """Several names, or one that stands alone."""
    return (names,) if isinstance(names, str) else tuple(names)
