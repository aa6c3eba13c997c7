"""Erasure code: any k of n shares give the data back. Shares are zfec's, byte for byte, whichever library makes them.

The code is systematic: the first k shares are the data, cut into contiguous slices; the others are parity by zfec's
generator matrix over GF(256) (Rizzo 1997). ISA-L, in the wheel of pyeclib, is ten times as fast and lets go of the
interpreter; where it does not load, or does not give zfec's answer to a known question, zfec itself is used.

All shares of a stripe lie one after the other in one buffer, share `i` at `i * size`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import zfec

log = logging.getLogger(__name__)

SHARES_MAX = 255
_TABLE_BYTES = 32
"""Per coefficient, in ISA-L."""
_TABLES_KEPT = 256


class Code:
    """One code, k of n. Make it by `code`. Neither method copies more than it must."""

    def __init__(self, k: int, n: int) -> None:
        assert 1 <= k <= n <= SHARES_MAX, "layouts are checked where they come in"
        self.k, self.n = k, n
        self._encoder = zfec.Encoder(k, n) if n > k else None
        self._isal = _isal()
        self._matrix = _matrix(k, n, self._encoder)
        if self._isal is not None and n > k:
            self._parity_tables = self._isal.tables(k, self._matrix[k * k :])

    def add_parity(self, buffer: bytearray, size: int) -> None:
        """Fills shares k … n-1 from shares 0 … k-1, each of `size` bytes."""
        if self.n == self.k or not size:
            return
        if self._isal is not None:
            at = _address(buffer)
            sources = [at + i * size for i in range(self.k)]
            self._isal.multiply(size, self._parity_tables, sources, [at + i * size for i in range(self.k, self.n)])
            return
        assert self._encoder is not None, "there is parity to compute"
        view = memoryview(buffer)
        blocks = [bytes(view[i * size : (i + 1) * size]) for i in range(self.k)]
        for i, block in zip(
            range(self.k, self.n), self._encoder.encode(blocks, tuple(range(self.k, self.n))), strict=True
        ):
            view[i * size : (i + 1) * size] = block

    def rebuild(self, buffer: bytearray, size: int, have: Sequence[int], want: Sequence[int]) -> None:
        """Fills the shares `want` from the shares `have`, of which there are k at least; the first k of them count."""
        have, want = tuple(have[: self.k]), tuple(want)
        assert len(have) == self.k, "fewer than k shares say nothing"
        if not want or not size:
            return
        if self._isal is not None:
            at = _address(buffer)
            tables = self._isal.rebuilding(self.k, self._matrix, have, want)
            self._isal.multiply(size, tables, [at + i * size for i in have], [at + i * size for i in want])
            return
        self._rebuild_slowly(buffer, size, have, want)

    def _rebuild_slowly(self, buffer: bytearray, size: int, have: Sequence[int], want: Sequence[int]) -> None:
        view = memoryview(buffer)
        blocks = {i: bytes(view[i * size : (i + 1) * size]) for i in have}
        # zfec wants what is whole in its place.
        rest = [i for i in have if i >= self.k]
        numbers = [i if i in blocks else rest.pop() for i in range(self.k)]
        first = zfec.Decoder(self.k, self.n).decode([blocks[i] for i in numbers], numbers)
        made = self._encoder.encode(first, tuple(want)) if self._encoder is not None else [first[i] for i in want]
        for i, block in zip(want, made, strict=True):
            view[i * size : (i + 1) * size] = block


@lru_cache(64)
def code(k: int, n: int) -> Code:
    """The code of n shares of which k are enough."""
    return Code(k, n)


def is_fast() -> bool:
    """Whether ISA-L is used."""
    return _isal() is not None


def _matrix(k: int, n: int, encoder: Any) -> bytes:
    """zfec's generator matrix, row by row, found by coding unit vectors."""
    matrix = bytearray(n * k)
    for i in range(k):
        matrix[i * k + i] = 1
    if encoder is not None:
        for j in range(k):
            unit = [bytes([1 if i == j else 0]) for i in range(k)]
            for row, value in zip(range(k, n), encoder.encode(unit, tuple(range(k, n))), strict=True):
                matrix[row * k + j] = value[0]
    return bytes(matrix)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class _Isal:
    """The few calls of ISA-L that a code needs."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._init_tables, self._encode = library.ec_init_tables, library.ec_encode_data
        self._invert, self._mul = library.gf_invert_matrix, library.gf_mul
        self._init_tables.argtypes, self._init_tables.restype = [number, number, pointer, pointer], None
        self._encode.argtypes, self._encode.restype = [number, number, number, pointer, pointer, pointer], None
        self._invert.argtypes, self._invert.restype = [pointer, pointer, number], number
        self._mul.argtypes, self._mul.restype = [ctypes.c_ubyte, ctypes.c_ubyte], ctypes.c_ubyte
        self.rebuilding = lru_cache(_TABLES_KEPT)(self._rebuilding)

    def tables(self, k: int, rows: bytes) -> ctypes.Array[ctypes.c_char]:
        """What `multiply` needs for these rows of a matrix of k columns."""
        made = ctypes.create_string_buffer(_TABLE_BYTES * len(rows))
        self._init_tables(k, len(rows) // k, ctypes.create_string_buffer(rows, len(rows)), made)
        return made

    def multiply(
        self, size: int, tables: ctypes.Array[ctypes.c_char], sources: Sequence[int], targets: Sequence[int]
    ) -> None:
        """Fills each target from all sources, all given by their addresses."""
        pointers = ctypes.c_void_p * len(sources), ctypes.c_void_p * len(targets)
        self._encode(size, len(sources), len(targets), tables, pointers[0](*sources), pointers[1](*targets))

    def _rebuilding(
        self, k: int, matrix: bytes, have: tuple[int, ...], want: tuple[int, ...]
    ) -> ctypes.Array[ctypes.c_char]:
        rows = ctypes.create_string_buffer(b"".join(matrix[i * k : i * k + k] for i in have), k * k)
        inverse = ctypes.create_string_buffer(k * k)
        is_singular = self._invert(rows, inverse, k)
        assert not is_singular, "any k rows of the matrix are independent"
        made = bytearray()
        for i in want:
            if i < k:
                made += inverse.raw[i * k : i * k + k]
                continue
            for column in range(k):
                value = 0
                for j in range(k):
                    value ^= self._mul(matrix[i * k + j], inverse.raw[j * k + column])
                made.append(value)
        return self.tables(k, bytes(made))


@cache
def _isal() -> _Isal | None:
    try:
        found = importlib.util.find_spec("pyeclib")
        if found is None or found.origin is None:
            return None
        place = next((Path(found.origin).parents[1] / "pyeclib.libs").glob("libisal*"), None)
        if place is None:
            return None
        isal = _Isal(ctypes.CDLL(str(place)))
    except (OSError, AttributeError, ImportError) as error:
        log.info("ISA-L does not load, zfec is used in its place: %s", error)
        return None
    if not _answers_like_zfec(isal):
        log.warning("ISA-L does not give zfec's answer to a known question; zfec is used in its place")
        return None
    return isal


def _answers_like_zfec(isal: _Isal) -> bool:
    for k, n in ((3, 5), (10, 20)):
        blocks = [bytes((i * 7 + j * 31 + 5) % 256 for j in range(64)) for i in range(k)]
        encoder = zfec.Encoder(k, n)
        expected = encoder.encode(blocks, tuple(range(k, n)))
        buffer = bytearray(b"".join(blocks)) + bytearray(64 * (n - k))
        matrix = _matrix(k, n, encoder)
        at = _address(buffer)
        tables = isal.tables(k, matrix[k * k :])
        isal.multiply(64, tables, [at + i * 64 for i in range(k)], [at + i * 64 for i in range(k, n)])
        if bytes(buffer[k * 64 :]) != b"".join(expected):
            return False
        have = tuple(range(n - k, n))
        buffer[: (n - k) * 64] = bytes((n - k) * 64)
        isal.multiply(64, isal.rebuilding(k, matrix, have, (0,)), [at + i * 64 for i in have], [at])
        if bytes(buffer[:64]) != blocks[0]:
            return False
    return True
