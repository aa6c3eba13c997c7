"""Villages: people with a replica each of one community's operations, who meet when a test lets them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId, TwinId
from croft.twins.community import Community
from croft.twins.community_operation import Operation, Signed
from croft.wire.codec import encode

VILLAGE = CommunityId("c0" * 32)


def twin(name: str) -> TwinId:
    """The id of somebody, the same each time."""
    return TwinId(sha256(name.encode()).hexdigest())


FOUNDER = twin("fay")


def signed(author: TwinId, operation: Operation, path: Sequence[TwinId] = ()) -> Signed:
    """An operation as it is once its signature was checked; signing itself is tested elsewhere."""
    name = sha256(encode((author, operation))).digest()
    return Signed(name, author, operation, b"", tuple(path))


class Village:
    """What everybody signed, and each person's replica. `fay` founded it."""

    def __init__(self) -> None:
        self.replicas: dict[str, Community] = {}
        self.all: dict[bytes, Signed] = {}

    def __getitem__(self, name: str) -> Community:
        return self.replicas.setdefault(name, replica())

    def act(self, name: str, act: str, subject: str = "", value: str = "", **changes: object) -> Signed:
        """Somebody does something, knowing what they know; it counts in their own replica at once."""
        known = self[name]
        about = value if not subject and act == "rule" else subject
        whom = about if act == "rule" else twin(about or name)
        operation = known.next_operation(twin(name), act, whom, value, at=0.0, chain=[])
        for field, what in changes.items():
            operation = _changed(operation, **{field: what})
        made = signed(twin(name), operation)
        known.take(made)
        self.all[made.id] = made
        return made

    def meet(self, *names: str) -> None:
        """These people tell each other all they know."""
        for name in names:
            for other in names:
                take_all(self[name], (self.all[one.id] for one in self[other].lacking((), self[other].heads(1024))))

    def everybody_meets(self) -> None:
        """All know all."""
        self.meet(*self.replicas, *self.replicas)


def replica() -> Community:
    """One that knows nothing yet."""
    return Community(VILLAGE, FOUNDER)


def take_all(known: Community, operations: Iterable[Signed]) -> list[Signed]:
    """Takes in operations; those that are refused are left out."""
    placed: list[Signed] = []
    for one in operations:
        try:
            placed += known.take(one, is_needed=True)
        except PeerMisbehaved:
            continue
    return placed


def _changed(operation: Operation, **what: object) -> Operation:
    from msgspec.structs import replace

    return replace(operation, **what)
