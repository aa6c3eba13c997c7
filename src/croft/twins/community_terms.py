"""What communities need of the overlay: links to members, and what their descriptors say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from croft.model.ids import CommunityId, PeerId, TwinId


class Joined(Protocol):
    """A community that this peer is in, and the grant that shows it."""

    @property
    def community(self) -> CommunityId: ...

    @property
    def name(self) -> str: ...

    @property
    def chain(self) -> Sequence[bytes]: ...


class Person(Protocol):
    """A member as its own descriptor says. `path`: who let whom in, by its grant."""

    @property
    def twin(self) -> TwinId: ...

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Sequence[TwinId]: ...


class Greeted(Protocol):
    """Who is on the other side of a link."""

    @property
    def twin(self) -> TwinId: ...


class Line(Protocol):
    """A link to a member."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def greeted(self) -> Greeted: ...

    def notify(self, topic: str, body: bytes) -> None: ...

    async def call(self, method: str, body: bytes, *, deadline_s: float) -> bytes: ...


class Lines(Protocol):
    """All links of this peer."""

    def get(self, peer: PeerId) -> Line | None: ...

    def all(self) -> Sequence[Line]: ...

    def on_up(self, handler: Callable[[Line], None]) -> None: ...

    def on_notice(self, topic: str, handler: Callable[[Line, bytes], None]) -> None: ...

    def on_call(self, method: str, handler: Callable[[Line, bytes], Awaitable[bytes]]) -> None: ...


class Neighbours(Protocol):
    """What is asked of the overlay."""

    @property
    def links(self) -> Lines: ...

    def communities(self) -> Sequence[Joined]: ...

    def community_members(self, community: CommunityId) -> Sequence[Person]: ...

    def shared_with(self, peer: PeerId) -> frozenset[CommunityId]: ...
