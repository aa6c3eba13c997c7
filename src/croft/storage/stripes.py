"""Work on the bytes of one stripe, fit for threads, and the buffers that it is done in, used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from croft.storage import merkle
from croft.storage.erasure import code
from croft.storage.formats import STRIPE_BYTES_MAX, Stripe
from croft.storage.placement import Layout
from croft.storage.sealing import SEGMENT_BYTES, Method, padded, seal, sealed_bytes_max
from croft.wire.room import Room

ALONE_BYTES: Final = 256 << 10
"""What was sealed to so much is a stripe of its own."""
PACK_BYTES: Final = 4 << 20
BUFFERS_BYTES: Final = 96 << 20
"""Of stripes under way in each direction."""
BUFFERS_KEPT: Final = 8


class Buffers:
    """Buffers of a bounded size in all. Whoever has one gives it back."""

    def __init__(self, size_bytes: int = BUFFERS_BYTES) -> None:
        self._room = Room(size_bytes)
        self._kept: list[bytearray] = []

    async def take(self, size_bytes: int) -> bytearray:
        """A buffer of at least so much, with anything in it."""
        size = -(-size_bytes // merkle.LEAF_BYTES) * merkle.LEAF_BYTES
        await self._room.take(size)
        for at, kept in enumerate(self._kept):
            if len(kept) == size:
                return self._kept.pop(at)
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Gives a buffer back."""
        self._room.give(len(buffer))
        self._kept.append(buffer)
        if len(self._kept) > BUFFERS_KEPT:
            self._kept.pop(0)


def buffer_bytes(layout: Layout) -> int:
    """What the shares of the largest stripe take; copies are all the same and need no room of their own."""
    size = sealed_bytes_max(SEGMENT_BYTES)
    return size if layout.k == 1 else -(-size // layout.k) * layout.n


def share_view(buffer: bytearray, layout: Layout, size: int, index: int) -> memoryview:
    """One share of the stripe of `size` bytes that lies in a buffer."""
    if layout.k == 1:
        return memoryview(buffer)[:size]
    share = -(-size // layout.k)
    return memoryview(buffer)[index * share : (index + 1) * share]


def make_shares(buffer: bytearray, layout: Layout, size: int) -> list[bytes]:
    """Codes the `size` bytes at the start of a buffer; the ids of the shares."""
    if layout.k == 1:
        return [merkle.share_id(memoryview(buffer)[:size])] * layout.n
    share = -(-size // layout.k)
    memoryview(buffer)[size : share * layout.k] = bytes(share * layout.k - size)
    code(layout.k, layout.n).add_parity(buffer, share)
    view = memoryview(buffer)
    return [merkle.share_id(view[i * share : (i + 1) * share]) for i in range(layout.n)]


def seal_and_code(
    key: bytes, number: int, plain: memoryview, buffer: bytearray, layout: Layout
) -> tuple[int, Method, list[bytes]]:
    """Seals a segment into a buffer, and codes it if it is a stripe of its own: its size, method, and shares' ids."""
    size, method = seal(key, number, plain, memoryview(buffer))
    return size, method, make_shares(buffer, layout, size) if size >= ALONE_BYTES else []


def close_pack(buffer: bytearray, layout: Layout, used: int) -> tuple[int, list[bytes]]:
    """Pads and codes a pack: its size, and its shares' ids."""
    size = padded(used)
    memoryview(buffer)[used:size] = bytes(size - used)
    return size, make_shares(buffer, layout, size)


def rebuild(buffer: bytearray, stripe: Stripe, have: Sequence[int]) -> None:
    """Makes the first k shares out of those that are here."""
    missing = [index for index in range(stripe.k) if index not in have]
    if not missing:
        return
    if stripe.k == 1:
        share = stripe.share_bytes
        view = memoryview(buffer)
        view[:share] = view[have[0] * share : (have[0] + 1) * share]
        return
    code(stripe.k, stripe.n).rebuild(buffer, stripe.share_bytes, have, missing)


def is_share(data: memoryview, share: bytes) -> bool:
    """Whether bytes are what a share's id says."""
    return merkle.share_id(data) == share


assert padded(PACK_BYTES) <= STRIPE_BYTES_MAX, "a pack is a stripe"
