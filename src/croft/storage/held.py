"""Reads contents from shares that lie on this machine's own disk, for work that came to where its data is.

Nobody else is asked: the owner of the data sent the work here because all that it needs is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence

from croft.errors import Failed, NotFound
from croft.model.ids import PeerId, TwinId
from croft.ports import ChunkStore, Offload
from croft.storage.contents import Reading
from croft.storage.formats import Content, Part, Stripe, check_content, decode_stored
from croft.storage.stripes import Buffers, rebuild


class HeldFiles:
    """What this machine holds for others, read with the keys that they bring."""

    def __init__(self, chunks: ChunkStore, offload: Offload) -> None:
        self._chunks = chunks
        self._offload = offload
        self._buffers = Buffers()

    def read(self, owner: TwinId, content: bytes) -> AsyncIterator[bytes | memoryview]:
        """The bytes of an owner's content.

        Raises:
            NotFound: too few of its shares are here. Failed: they are damaged, or `content` is none.
        """
        held = _Held(bytes.fromhex(owner), self._chunks, self._offload, self._buffers)
        return Reading(held, self._offload).read(decode_stored(content, Content))

    async def check(self, owner: TwinId, content: bytes) -> None:
        """Returns if all of an owner's content can be read here. Raises NotFound, Failed."""
        held = _Held(bytes.fromhex(owner), self._chunks, self._offload, self._buffers)
        opened = decode_stored(content, Content)
        check_content(opened)
        for stripe in _stripes(opened.parts):
            await held.shares(stripe)
        for stripe in _stripes(await Reading(held, self._offload).parts(opened)):
            await held.shares(stripe)


class _Held:
    """Fulfils `croft.storage.contents.Stripes`."""

    def __init__(self, owner: bytes, chunks: ChunkStore, offload: Offload, buffers: Buffers) -> None:
        self._owner = owner
        self._chunks = chunks
        self._offload = offload
        self._buffers = buffers

    async def shares(self, stripe: Stripe) -> list[int]:
        """Which shares are here, k of them. Raises NotFound."""
        sizes = await self._chunks.sizes(self._owner, stripe.shares)
        here = [index for index, size in enumerate(sizes) if size == stripe.share_bytes]
        if len(here) < stripe.k:
            raise NotFound(f"this peer holds {len(here)} of the {stripe.k} shares that are needed")
        return here[: stripe.k]

    async def stripe(self, stripe: Stripe) -> bytearray:
        here = await self.shares(stripe)
        buffer = await self._buffers.take(stripe.share_bytes * stripe.n)
        try:
            view, size = memoryview(buffer), stripe.share_bytes
            for index in here:
                data = await self._chunks.read(self._owner, stripe.shares[index])
                if len(data) != size:
                    raise Failed("a share changed while it was read")
                view[index * size : (index + 1) * size] = data
            await self._offload.run(rebuild, buffer, stripe, here)
        except BaseException:
            self._buffers.give(buffer)
            raise
        return buffer

    def done(self, buffer: bytearray) -> None:
        self._buffers.give(buffer)

    async def part(self, stripe: Stripe, offset: int, length: int) -> bytes | None:
        return None  # a pack is read whole: it is here


def whole_at(parts: Sequence[Part]) -> frozenset[PeerId]:
    """The peers that hold enough of every stripe of these parts to read them alone."""
    able: frozenset[PeerId] | None = None
    for stripe in _stripes(parts):
        held = Counter(stripe.holders)
        enough = frozenset(PeerId(holder.hex()) for holder, count in held.items() if count >= stripe.k)
        able = enough if able is None else able & enough
    return able or frozenset()


def _stripes(parts: Sequence[Part]) -> Collection[Stripe]:
    """Each once."""
    return {part.stripe.id: part.stripe for part in parts}.values()
