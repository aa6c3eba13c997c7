"""Tells which operations of a community came before which, in constant time. Sans-IO.

The graph is cut into lanes: an operation continues the lane of a parent that is that lane's last one, or begins a new
one. Each knows how far into every other lane its past reaches, so that "before" is one comparison (chain decomposition,
Jagadish 1990). Where people hear of each other there are as many lanes as there were splits, not as many as people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from croft.model.ids import TwinId


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An operation in its place.

    `index` counts as they came in, parents before children. `depth`: the longest way from a first operation, 1 for
    those. `reach`: per lane but its own, the last place in it that lies in the past. `path`: see `Signed`.
    """

    id: bytes
    author: TwinId
    sequence: int
    act: str
    subject: str
    value: str
    at: float
    index: int
    depth: int
    lane: int
    place: int
    reach: Mapping[int, int] = field(repr=False)
    path: tuple[TwinId, ...] = ()


_LAST = 1 << 62


class _Everywhere(dict[int, int]):
    def get(self, key: int, default: int | None = None) -> int:  # type: ignore[override]
        return _LAST


NOW = Placed(b"", TwinId(""), _LAST, "", "", "", 0.0, _LAST, _LAST, -1, 0, _Everywhere())
"""Stands for whatever would be done now, knowing all."""


def wanted(author: TwinId, act: str, subject: str, value: str, path: tuple[TwinId, ...] = ()) -> Placed:
    """An act that nobody has signed yet, as if it were done now."""
    return Placed(b"", author, _LAST, act, subject, value, 0.0, _LAST, _LAST, -1, 0, NOW.reach, path)


def is_before(one: Placed, other: Placed) -> bool:
    """Whether `other`'s author knew of `one`: it lies in the past of `other`."""
    if one.index >= other.index:
        return False
    if one.lane == other.lane:
        return one.place < other.place
    return other.reach.get(one.lane, -1) >= one.place


class Graph:
    """The operations of one community that have all their parents here."""

    def __init__(self) -> None:
        self.order: list[Placed] = []
        self._by_id: dict[bytes, Placed] = {}
        self._tips: list[int] = []
        self._heads: dict[bytes, Placed] = {}

    def __contains__(self, one: bytes) -> bool:
        return one in self._by_id

    def __getitem__(self, one: bytes) -> Placed:
        return self._by_id[one]

    def __len__(self) -> int:
        return len(self.order)

    def heads(self) -> list[Placed]:
        """Those that no other one names as a parent, deepest first."""
        return sorted(self._heads.values(), key=lambda one: (-one.depth, one.id))

    def is_last(self, one: Placed) -> bool:
        """Whether all others are before it."""
        return len(self._heads) == 1 and one.id in self._heads

    def missing(self, parents: Iterable[bytes]) -> list[bytes]:
        """Which of them are not here."""
        return [one for one in parents if one not in self._by_id]

    def make(self, parents: Sequence[bytes], **what: object) -> Placed:
        """An operation in the place that it would have; nothing changes yet."""
        known = [self._by_id[one] for one in parents]
        on = next((one for one in known if self._tips[one.lane] == one.place), None)
        lane, place = (len(self._tips), 0) if on is None else (on.lane, on.place + 1)
        depth = 1 + max((one.depth for one in known), default=0)
        reach = _reach(known, lane)
        return Placed(index=len(self.order), depth=depth, lane=lane, place=place, reach=reach, **what)  # type: ignore[arg-type]

    def put(self, placed: Placed, parents: Sequence[bytes]) -> None:
        """Takes in what `make` just made."""
        assert placed.index == len(self.order), "made for this very place"
        if placed.lane == len(self._tips):
            self._tips.append(placed.place)
        else:
            self._tips[placed.lane] = placed.place
        self.order.append(placed)
        self._by_id[placed.id] = placed
        self._heads[placed.id] = placed
        for parent in parents:
            self._heads.pop(parent, None)

    def lacking(self, known: Iterable[bytes], wanted: Iterable[bytes], start: int = 0) -> Iterator[Placed]:
        """What somebody lacks who knows these and wants those, parents before children, from an index on."""
        have = _all_in([self._by_id[one] for one in known if one in self._by_id])
        want = [self._by_id[one] for one in wanted if one in self._by_id]
        asked = _all_in(want)
        last = max((one.index for one in want), default=-1)
        for index in range(max(start, 0), last + 1):
            one = self.order[index]
            if have.get(one.lane, -1) < one.place <= asked.get(one.lane, -1):
                yield one

    def sample(self, count_max: int) -> list[bytes]:
        """Ids by which another peer can tell what is here: the heads, then ever older ones."""
        ids = [one.id for one in self.heads()[: count_max // 2]]
        back = 1
        while back < len(self.order) and len(ids) < count_max:
            ids.append(self.order[-1 - back].id)
            back *= 2
        return ids


def _reach(parents: Sequence[Placed], lane: int) -> Mapping[int, int]:
    if len(parents) == 1 and parents[0].lane == lane:
        return parents[0].reach
    reach = _all_in(parents)
    reach.pop(lane, None)
    return reach


def _all_in(operations: Sequence[Placed]) -> dict[int, int]:
    """Per lane, the last place that lies in the past of any of these, or is one of them."""
    reach: dict[int, int] = {}
    for one in sorted(operations, key=lambda one: -len(one.reach)):
        if not reach:
            reach = dict(one.reach)
        else:
            for lane, place in one.reach.items():
                if reach.get(lane, -1) < place:
                    reach[lane] = place
    for one in operations:
        if reach.get(one.lane, -1) < one.place:
            reach[one.lane] = one.place
    return reach
