"""Decides which members fit a query, and which of them first: by what is free now, how near, what they are.

Sans-IO; it judges what members say of themselves, and forgets nothing and knows nothing of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from croft.model.ids import PeerId

GRADES = "ABCD"
"""Best first."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a peer must have. Zero and empty: whatever. `grade`: this one or a better one. Labels: all of them."""

    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    round_trip_s: float | None = None
    machine: str = ""
    python: str = ""
    grade: str = ""
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Listing:
    """A member that is alive: what it lends, and how much of it is taken. `round_trip_s` None: not known."""

    peer: PeerId
    slots: int
    slots_busy: int
    memory_bytes: int
    disk_bytes: int
    machine: str
    python: str
    grade: str
    labels: tuple[str, ...]
    round_trip_s: float | None

    @property
    def slots_free(self) -> int:
        """Lent processors that nobody uses."""
        return max(0, self.slots - self.slots_busy)

    @property
    def memory_free_bytes(self) -> int:
        """Lent memory that is not set aside for slots in use."""
        return self.memory_bytes * self.slots_free // self.slots if self.slots else 0


def fits_but_for_distance(query: Query, listing: Listing) -> bool:
    """Whether it has all that is wanted; how far it is does not count."""
    return (
        listing.slots_free >= query.cpus
        and listing.memory_free_bytes >= query.memory_bytes
        and listing.disk_bytes >= query.disk_bytes
        and query.machine in ("", listing.machine)
        and query.python in ("", listing.python)
        and query.labels <= frozenset(listing.labels)
        and (not query.grade or _is_as_good(query, listing))
    )


def fits(query: Query, listing: Listing) -> bool:
    """Whether it has all that is wanted. How far an unmeasured one is, is not known, so it does not fit a distance."""
    if not fits_but_for_distance(query, listing):
        return False
    if query.round_trip_s is None:
        return True
    return listing.round_trip_s is not None and listing.round_trip_s <= query.round_trip_s


def search(query: Query, listings: Iterable[Listing]) -> Sequence[Listing]:
    """Those that fit: most free processors first, near before far."""
    return sorted((one for one in listings if fits(query, one)), key=_rank)


def _is_as_good(query: Query, listing: Listing) -> bool:
    return listing.grade in GRADES and GRADES.index(listing.grade) <= GRADES.index(query.grade)


def _rank(listing: Listing) -> tuple[int, bool, float, PeerId]:
    return -listing.slots_free, listing.round_trip_s is None, listing.round_trip_s or 0.0, listing.peer
