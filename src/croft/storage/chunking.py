"""Cuts bytes where their content says so (FastCDC, Xia et al. 2016), so that a change moves few cuts, and names chunks.

Both depend on the owner's secret: nobody else knows where somebody's files are cut, nor what a chunk is called.
Work on bytes, fit for threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from blake3 import blake3
from pyfastcdc import FastCDC

CHUNK_BYTES_MIN: Final = 128 << 10
"""A file that is smaller is one chunk."""
CHUNK_BYTES_AVERAGE: Final = 512 << 10
CHUNK_BYTES_MAX: Final = 2 << 20
SEED_BYTES: Final = 7
PURPOSE: Final = "backup chunks"


class Chunker:
    """Cuts and names for one owner. `secret`: derived for PURPOSE."""

    def __init__(self, secret: bytes) -> None:
        self._key = secret
        seed = blake3(secret, derive_key_context="croft storage v1 backup cuts").digest(SEED_BYTES)
        self._cutter = FastCDC(
            avg_size=CHUNK_BYTES_AVERAGE,
            min_size=CHUNK_BYTES_MIN,
            max_size=CHUNK_BYTES_MAX,
            seed=int.from_bytes(seed, "little"),
        )

    def name(self, data: bytes | memoryview) -> bytes:
        """What a chunk is called."""
        return blake3(data, key=self._key).digest()

    def cut(self, data: bytes | bytearray | memoryview, *, is_end: bool) -> Iterator[memoryview]:
        """The chunks that `data` begins with. Unless it ends here, what could still grow is left out."""
        view = memoryview(data)
        if is_end and len(view) <= CHUNK_BYTES_MIN:
            if len(view):
                yield view
            return
        for chunk in self._cutter.cut_buf(view):
            end = chunk.offset + chunk.length
            if end == len(view) and not is_end:
                return
            yield view[chunk.offset : end]
