"""A share's id is the root of a hash tree over its leaves, so that any part of it can be checked by itself.

Leaves are 16 KiB, the last one may be shorter. Hashes are BLAKE3 with keys of their own for leaves, inner nodes and
roots (domain separation); the root covers the size. A node without a sibling moves up as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blake3 import blake3

from croft.errors import PeerMisbehaved

LEAF_BYTES: Final = 16 << 10
HASH_BYTES: Final = 32
_LEAF_KEY = blake3(b"leaf", derive_key_context="croft storage v1 share tree").digest()
_NODE_KEY = blake3(b"node", derive_key_context="croft storage v1 share tree").digest()
_ROOT_KEY = blake3(b"root", derive_key_context="croft storage v1 share tree").digest()
STEP = "share"


def share_id(share: bytes | bytearray | memoryview) -> bytes:
    """The id of a whole share."""
    return _root(len(share), _reduce(leaves(share)))


def leaf_span(offset: int, size: int, share_bytes: int) -> tuple[int, int]:
    """Offset and size of the whole leaves that hold a range of a share."""
    assert offset >= 0 and size > 0 and offset + size <= share_bytes, "ranges are checked where they come in"
    start = offset // LEAF_BYTES * LEAF_BYTES
    return start, min(-(-(offset + size) // LEAF_BYTES) * LEAF_BYTES, share_bytes) - start


def leaves(share: bytes | bytearray | memoryview) -> list[bytes]:
    """The hashes of a share's leaves, from which any part of it can be proved."""
    view = memoryview(share)
    return [
        blake3(view[at : at + LEAF_BYTES], key=_LEAF_KEY).digest() for at in range(0, max(1, len(view)), LEAF_BYTES)
    ]


def prove(level: Sequence[bytes], offset: int, size: int) -> list[bytes]:
    """The hashes out of all `leaves` that `check` needs beside those at `offset`: from below, left before right."""
    first, last = offset // LEAF_BYTES, -(-(offset + size) // LEAF_BYTES)
    level, proof = list(level), list[bytes]()
    while len(level) > 1:
        if first % 2:
            proof.append(level[first - 1])
        if last % 2 and last < len(level):
            proof.append(level[last])
        level = _parents(level)
        first, last = first // 2, -(-last // 2)
    return proof


def check(share: bytes, share_bytes: int, offset: int, data: bytes | memoryview, proof: Sequence[bytes]) -> None:
    """Raises PeerMisbehaved unless `data` are the whole leaves at `offset` of the share with this id and size."""
    if leaf_span(offset, len(data), share_bytes) != (offset, len(data)):
        raise PeerMisbehaved("a part of a share that is not of whole leaves", step=STEP)
    left = list(reversed(proof))
    level, first = leaves(data), offset // LEAF_BYTES
    width = -(-share_bytes // LEAF_BYTES)
    while width > 1:
        last = first + len(level)
        if first % 2:
            level.insert(0, left.pop() if left else b"")
        if last % 2 and last < width:
            level.append(left.pop() if left else b"")
        level = _parents(level, is_whole=last >= width)
        first, width = first // 2, -(-width // 2)
    if left or _root(share_bytes, level[0]) != share:
        raise PeerMisbehaved("a part of a share that is not what its id says", step=STEP)


def _parents(level: Sequence[bytes], *, is_whole: bool = True) -> list[bytes]:
    made = [blake3(a + b, key=_NODE_KEY).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
    if len(level) % 2:
        assert is_whole, "only the last node of a level has no sibling"
        made.append(level[-1])
    return made


def _reduce(level: list[bytes]) -> bytes:
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def _root(size: int, top: bytes) -> bytes:
    return blake3(size.to_bytes(8, "little") + top, key=_ROOT_KEY).digest()
