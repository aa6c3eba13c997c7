"""What a lender needs of the rest of its peer: who asks, what the owner allows and offers, and the book of leases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from croft.compute.messages import OpenCommand, OpenTasks
from croft.model.amounts import Amounts
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.model.lease import Lease, Request, Stage, Usage

if TYPE_CHECKING:
    from croft.ports import BoxSpec


class Consumer(Protocol):
    """Who asks; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...

    @property
    def name(self) -> str: ...

    @property
    def communities(self) -> frozenset[CommunityId]: ...


class Policy(Protocol):
    """What the owner of this machine allows, and how boxes are made."""

    def check(self, twin: TwinId, *, is_wasm: bool = False) -> None:
        """Raises Refused if foreign native code of this twin may not run here; or, with `is_wasm`, WebAssembly."""
        ...

    def python(self) -> str:
        """Major.minor of the interpreter in the boxes."""
        ...

    def task_wants(self, opening: OpenTasks, most: Amounts, room: Amounts) -> Amounts:
        """What a box of tasks takes, given what is offered at most and what of it nobody holds."""
        ...

    def command_wants(self, opening: OpenCommand, most: Amounts, room: Amounts) -> Amounts:
        """The same for the box of one command."""
        ...

    def task_box(
        self, twin: TwinId, amounts: Amounts, slots: int, devices: Mapping[str, str], environment: str = ""
    ) -> BoxSpec:
        """A box in which up to `slots` tasks run at once; `devices` by name, and where each of them is.

        `environment`: a folder of this machine from which its code imports; "" for none.
        """
        ...

    def command_box(self, amounts: Amounts, cpus: float, devices: Mapping[str, str], environment: str = "") -> BoxSpec:
        """The box of one command, its work folder made. Raises Failed."""
        ...

    def wheel_tags(self) -> Sequence[str]:
        """What wheels for the interpreter in the boxes are marked with, best first."""
        ...

    def build_box(self, wheels: Path, arguments: Sequence[str], bytes_max: int) -> BoxSpec:
        """A box that unpacks wheels, which are in the folder `wheels`, into its work folder. Raises Failed."""
        ...

    def discard(self, spec: BoxSpec) -> None:
        """Removes the work folder of a box that is closed, whatever the code inside made of it. Blocks."""
        ...


class Offers(Protocol):
    """What the owner offers to whom."""

    def standing_for(self, consumer: Consumer) -> tuple[str, ...]:
        """The offers that stand for somebody at this moment, best first. Raises Refused that says why none does."""
        ...

    def places(self, lease: Lease) -> Mapping[str, str]:
        """Where the devices that a lease holds are to be found, if they are files."""
        ...


class Held(Protocol):
    """What this machine holds of its consumers' data."""

    async def check(self, owner: TwinId, content: bytes) -> None:
        """Returns if all of it can be read here. Raises NotFound, Failed."""
        ...

    def read(self, owner: TwinId, content: bytes) -> AsyncIterator[bytes | memoryview]:
        """Its bytes. Raises NotFound, Failed."""
        ...


class Leases(Protocol):
    """See `croft.ledger.leasing.LeaseBook`."""

    def most(self, offers: Sequence[str]) -> Amounts: ...

    def room(self, offers: Sequence[str]) -> Amounts: ...

    async def take(self, request: Request, wait_s: float = 0.0) -> Lease: ...

    def leave(self, lease: Lease, stage: Stage) -> None: ...

    def stage(self, lease: Lease) -> Stage | None: ...

    def used(self, lease: Lease, usage: Usage) -> None: ...

    def ended(self, lease: Lease) -> None: ...
