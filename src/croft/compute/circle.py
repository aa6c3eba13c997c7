"""Decides who may open streams to whom in one circle: a consumer's program and its boxes on several lenders.

Members know each other by name. The consumer says which peer each one is on; a stream is taken from just that peer, or
from the consumer, who may speak for all. Sans-IO: nothing here touches a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from croft.errors import Busy, NotFound, Refused
from croft.model.ids import PeerId

HOME = "home"
"""The member that is the consumer's own program."""
CIRCLE_LENGTH_MAX = 64
MEMBER_LENGTH_MAX = 64
MEMBERS_MAX = 1_024
STREAMS_PER_MEMBER_MAX = 256
"""Open at once, whoever opened them, those that are being opened among them."""


@dataclass(slots=True)
class Circle:
    """One circle, as one of its peers knows it. `places` says where members are; `streams` counts those of members
    that are here."""

    owner: PeerId
    own: PeerId
    places: dict[str, PeerId] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)

    def place(self, member: str, peer: PeerId) -> None:
        """A member is on this peer now. Raises Refused if there are too many, or it is there already."""
        if member in self.places:
            raise Refused(f"`{member}` is in this circle already", remedy="Give each member a name of its own.")
        if len(self.places) >= MEMBERS_MAX:
            raise Refused(f"a circle has no more than {MEMBERS_MAX} members")
        self.places[member] = peer

    def take_roster(self, places: Mapping[str, str]) -> None:
        """What the consumer says of where its members are. Its own program is where the consumer is, always."""
        self.places = {member: PeerId(peer) for member, peer in places.items()}
        self.places[HOME] = self.owner

    def enter(self, member: str) -> None:
        """A member is here now. Raises Refused if one of this name is."""
        if member in self.streams:
            raise Refused(f"`{member}` of this circle runs here already", remedy="Give each member a name of its own.")
        self.streams[member] = 0

    def leave(self, member: str) -> None:
        """It is no more."""
        del self.streams[member]

    @property
    def is_empty(self) -> bool:
        """Whether no member is here."""
        return not self.streams

    def opened(self, member: str) -> None:
        """One more stream of a member that is here. Raises Busy."""
        if self.streams[member] >= STREAMS_PER_MEMBER_MAX:
            raise Busy(
                f"`{member}` has {STREAMS_PER_MEMBER_MAX} streams open already", remedy="Close some that are idle."
            )
        self.streams[member] += 1

    def closed(self, member: str) -> None:
        """One less."""
        if member in self.streams:
            self.streams[member] -= 1

    def check(self, peer: PeerId, sender: str) -> None:
        """Whether `peer` may speak for `sender`. Raises Refused."""
        if peer != self.owner and self.places.get(sender) != peer:
            raise Refused(f"you hold no `{sender}` of this circle")

    def way(self, target: str) -> PeerId:
        """Where to open a stream to a member: its peer, or the consumer, who knows best. Raises NotFound."""
        if target in self.streams:
            return self.own
        peer = self.places.get(target)
        if peer is None and self.own != self.owner:
            return self.owner
        if peer is None or peer == self.own:
            raise NotFound(f"no `{target}` is in this circle", remedy="It has ended, or is not there yet.")
        return peer
