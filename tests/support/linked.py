"""Links of a simulated world: made, read and written by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from croft.sim.world import Machine
from croft.storage.contents import BytesSource
from croft.storage.formats import Version
from croft.storage.links import OwnLink, read_link
from croft.storage.placement import Rule
from croft.storage.sharing import Named

DAY_S = 86_400.0


async def make(owner: Machine, name: str, *readers: Machine, write: Sequence[Machine] = ()) -> OwnLink:
    """A link to a file or folder for these machines' people."""
    read, written = (Named([bytes.fromhex(one.twin) for one in some]) for some in (readers, write))
    return await owner.parts.links.sharing.make(name.encode(), read, written, owner.clock.now() + DAY_S)


def line_of(owner: Machine, link: OwnLink) -> str:
    """What is passed on."""
    return link.line(bytes.fromhex(owner.twin))


async def read_by_link(machine: Machine, line: str) -> dict[str, bytes]:
    """What a link leads to."""
    opened = await machine.parts.links.reader.open(read_link(line))
    found: dict[str, bytes] = {}
    for name, version in opened.files().items():
        assert version.content is not None
        found[name.decode()] = b"".join([bytes(piece) async for piece in opened.read(version.content)])
    return found


async def write_by_link(
    machine: Machine, line: str, files: Mapping[str, bytes | None], wanted: Rule | None = None
) -> None:
    """Puts files behind a link; None: removes one."""
    async with machine.parts.storage.putting(wanted or Rule()) as putting:
        changes: dict[bytes, Version] = {}
        for name, data in files.items():
            content = None
            if data is not None:
                pending = await putting.add(BytesSource(data))
                await putting.finish()
                content = pending.content
            changes[name.encode()] = Version(0, b"", 0.0, len(data or b""), content)
        await machine.parts.links.writer.write(read_link(line), changes, putting)
