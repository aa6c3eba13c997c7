"""Files of a simulated world: put, read, and where their shares are."""

from __future__ import annotations

from collections.abc import Iterable

from croft.model.ids import PeerId
from croft.sim.world import Machine, World
from croft.storage.contents import BytesSource
from croft.storage.formats import Version
from croft.storage.placement import Layout, Rule, bounds_of, parse_layout


def rule(world: World, *, on: Iterable[str] = (), never: Iterable[str] = (), keep: str = "") -> Rule:
    """A rule that names machines."""
    layout: Layout | None = parse_layout(keep) if keep else None
    return Rule(
        tuple(world[name].peer for name in on),
        tuple(world[name].peer for name in never),
        tuple(world[name].twin for name in never),
        layout,
    )


async def put(
    machine: Machine, name: str, data: bytes, wanted: Rule | None = None, *, until: int = 0
) -> dict[PeerId, int]:
    """Puts a file; how many shares each peer took."""
    storage = machine.parts.storage
    async with storage.putting(wanted or Rule()) as putting:
        pending = await putting.add(BytesSource(data), has_head=True)
        await putting.finish()
        bounds = bounds_of(wanted or Rule())
        version = Version(0, b"", 0.0, len(data), pending.content, until=until, bounds=bounds)
        await storage.commit({name.encode(): version}, putting)
        return putting.holders


async def get(machine: Machine, name: str, number: int = 0) -> bytes:
    """The bytes of a file."""
    storage = machine.parts.storage
    entry = await storage.entry(name.encode())
    version = next((one for one in entry.versions if one.number == number), entry.versions[-1])
    assert version.content is not None, f"{name} was removed"
    return b"".join([bytes(piece) async for piece in storage.read(version.content)])


async def names(machine: Machine) -> list[str]:
    """The files there are."""
    return [
        entry.name.decode() async for entry in machine.parts.storage.entries() if entry.versions[-1].content is not None
    ]


def held(machine: Machine, owner: Machine) -> dict[bytes, bytes]:
    """The very shares that a machine's disk holds for an owner: change them, and it lies."""
    return machine.chunks.shares(bytes.fromhex(owner.twin))
