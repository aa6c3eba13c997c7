"""What the bag of tasks knows of chunks, lenders and tasks, and when, by that, chunks will be done. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from croft.compute.splitter import Pace, remaining_s
from croft.model.ids import PeerId


@dataclass(slots=True)
class Chunk:
    """Tasks that one lender has as one piece of work."""

    peer: PeerId
    owner: str
    function: bytes
    tasks: tuple[int, ...]
    open: set[int]
    size: int
    moved_at: float
    """When its running task began, or, while it waits, when it was dealt."""
    answered: int = 0


@dataclass(slots=True)
class Lender:
    """Somebody with a session."""

    slots: int
    owner: str
    bytes_max: int = 0
    bytes_held: int = 0
    pace: dict[bytes, Pace] = field(default_factory=dict)
    chunks: dict[int, None] = field(default_factory=dict)
    """In the order in which it got them: the first `slots` run, the others wait."""


@dataclass(slots=True)
class Task:
    """A task without a recorded outcome."""

    function: bytes
    size: int
    group: int | None = None
    near: frozenset[PeerId] = frozenset()
    lenders_lost: int = 0
    failures: int = 0
    copied_at: float = 0.0
    chunks: list[int] = field(default_factory=list)


def typical_paces(lenders: Iterable[Lender]) -> dict[bytes, float]:
    """How long a task of each function takes, in the middle of those who have done any."""
    known: dict[bytes, list[float]] = {}
    for lender in lenders:
        for function, pace in lender.pace.items():
            if pace.task_s is not None:
                known.setdefault(function, []).append(pace.task_s)
    return {function: sorted(paces)[len(paces) // 2] for function, paces in known.items()}


def forecast(
    lenders: Iterable[Lender], chunks: Mapping[int, Chunk], typical: Mapping[bytes, float], now: float
) -> Iterator[tuple[float, int]]:
    """In how many seconds each chunk will be done, of whose function anything is known."""
    for lender in lenders:
        free_in = [0.0] * lender.slots
        for place, number in enumerate(lender.chunks):
            chunk = chunks[number]
            if not chunk.open or chunk.function not in typical:
                continue
            pace = lender.pace.get(chunk.function)
            task_s = pace.task_s if pace and pace.task_s is not None else typical[chunk.function]
            is_running = place < lender.slots
            slot = free_in.index(min(free_in))
            in_hand_s = remaining_s(task_s, now - chunk.moved_at)
            free_in[slot] += (in_hand_s if is_running else task_s) + task_s * (len(chunk.open) - 1)
            # What waits for long behind nothing that is known of is late all the same.
            yield max(free_in[slot], in_hand_s), number
