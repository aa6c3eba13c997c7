"""Decides which peers are told now of the letters that are kept here. Sans-IO.

Every box has a version, which rises with each letter that comes into it. Peers who are to read a box are told of each
version; while none of them has the newest, so are some who keep it for them. Whoever could not be told is asked again
later, more and more rarely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from croft.model.ids import PeerId
from croft.twins.letters import Box

RETRY_S_MIN: Final = 2.0
RETRY_S_MAX: Final = 120.0
UNDER_WAY_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class View:
    """Who is up now.

    Attributes:
        readers: of the box. others: who get it too, and whom it is not for.
        keepers: who hold it while no reader has it, the better first, and `copies` of them at a time.
    """

    readers: tuple[PeerId, ...]
    others: tuple[PeerId, ...] = ()
    keepers: tuple[PeerId, ...] = ()
    copies: int = 0


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell this peer what there is in the box; say `answered` or `failed` of it afterwards."""

    peer: PeerId
    box: Box
    version: int


@dataclass(slots=True)
class _Failed:
    times: int
    until: float


class Delivery:
    """What each peer has been told."""

    def __init__(self) -> None:
        self._versions: dict[Box, int] = {}
        self._told: dict[tuple[PeerId, Box], int] = {}
        self._under_way: set[tuple[PeerId, Box]] = set()
        self._failed: dict[tuple[PeerId, Box], _Failed] = {}

    def boxes(self) -> list[Box]:
        """Those that hold letters."""
        return list(self._versions)

    def version(self, box: Box) -> int:
        """How many letters came into a box in this run."""
        return self._versions.get(box, 0)

    def grown(self, box: Box) -> None:
        """A letter came into a box."""
        self._versions[box] = self.version(box) + 1

    def emptied(self, box: Box) -> None:
        """Nothing is kept in a box any more."""
        self._versions.pop(box, None)
        for key in [key for key in self._told if key[1] == box]:
            del self._told[key]

    def met(self, peer: PeerId) -> None:
        """A peer came up anew: it may have missed something, and it may be tried at once."""
        for key in [key for key in (*self._told, *self._failed) if key[0] == peer]:
            self._told.pop(key, None)
            self._failed.pop(key, None)

    def has_newest(self, peer: PeerId, box: Box) -> bool:
        """Whether a peer was told of all that is kept of a box."""
        return self._told.get((peer, box), -1) >= self.version(box)

    def look(self, views: Mapping[Box, View], now: float) -> Sequence[Tell]:
        """Whom to tell what now."""
        told: list[Tell] = []
        for box, view in views.items():
            told += [Tell(peer, box, self.version(box)) for peer in self._wanted(box, view, now)]
        told = told[: max(0, UNDER_WAY_MAX - len(self._under_way))]
        self._under_way.update((tell.peer, tell.box) for tell in told)
        return told

    def answered(self, tell: Tell) -> None:
        """A peer now has all that was there when it was told."""
        self._under_way.discard((tell.peer, tell.box))
        self._failed.pop((tell.peer, tell.box), None)
        self._told[tell.peer, tell.box] = max(tell.version, self._told.get((tell.peer, tell.box), -1))

    def failed(self, tell: Tell, now: float) -> None:
        """A peer could not be told, or took not all."""
        key = tell.peer, tell.box
        self._under_way.discard(key)
        times = self._failed[key].times + 1 if key in self._failed else 1
        self._failed[key] = _Failed(times, now + min(RETRY_S_MAX, RETRY_S_MIN * 2 ** min(times - 1, 16)))

    def _wanted(self, box: Box, view: View, now: float) -> list[PeerId]:
        wanted = [peer for peer in (*view.readers, *view.others) if self._is_due(peer, box, now)]
        if any(self.has_newest(peer, box) for peer in view.readers):
            return wanted
        held = [peer for peer in view.keepers if self.has_newest(peer, box) or (peer, box) in self._under_way]
        due = [peer for peer in view.keepers if self._is_due(peer, box, now)]
        return wanted + due[: max(0, view.copies - len(held))]

    def _is_due(self, peer: PeerId, box: Box, now: float) -> bool:
        key = peer, box
        if self.has_newest(peer, box) or key in self._under_way:
            return False
        return key not in self._failed or self._failed[key].until <= now
