"""Seals and opens data: compressed where it helps, padded, AES-256-GCM. Who holds the result learns little of its size.

A key is used for one content only, which draws it at random, and the nonce is the number of the part; so no pair of
key and nonce comes twice, and equal contents of two owners, or of one, never look alike.
"""

from __future__ import annotations

import enum
import threading
from typing import Final

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from croft.errors import Failed

SEGMENT_BYTES: Final = 4 << 20
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
NONCE_BYTES: Final = 12
ZSTD_LEVEL: Final = 1
_WORTH_IT: Final = 15 / 16
"""What is not compressed to this share of its size stays as it is."""
_TRIED_BYTES: Final = 64 << 10
"""Of a large segment so much is compressed first, to see whether it is worth it."""

_local = threading.local()


class Method(enum.IntEnum):
    """How a part was written before it was sealed. Numbers are for ever."""

    PLAIN = 0
    ZSTD = 1


def derive(root: bytes, purpose: str) -> bytes:
    """The owner's secret for one purpose, from the twin's root entropy."""
    return blake3(root, derive_key_context=f"croft storage v1 {purpose}").digest()


def padded(size: int) -> int:
    """The size class of `size`: at most 12 % more, and only O(log log) bits of it show (Padmé, Nikitin et al. 2019)."""
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    kept = exponent.bit_length()
    mask = (1 << max(0, exponent - kept)) - 1
    return (size + mask) & ~mask


def sealed_bytes_max(size: int) -> int:
    """The most that sealing `size` bytes may give."""
    return padded(size) + TAG_BYTES


def seal(key: bytes, number: int, data: memoryview | bytes, into: memoryview) -> tuple[int, Method]:
    """Seals one part into the start of `into`; its sealed size, and how it was written."""
    method, body = Method.PLAIN, data
    small = _compressed(data)
    if small is not None:
        method, body = Method.ZSTD, small
    size = padded(len(body))
    if size != len(body):
        body = bytes(body) + bytes(size - len(body))
    AESGCM(key).encrypt_into(number.to_bytes(NONCE_BYTES, "little"), body, None, into[: size + TAG_BYTES])
    return size + TAG_BYTES, method


def unseal(key: bytes, number: int, sealed: memoryview | bytes, method: int, size: int) -> bytes | memoryview:
    """The `size` bytes that were sealed. Raises Failed if this is not what was sealed under this key and number."""
    if len(sealed) < TAG_BYTES:
        raise damaged()
    body = bytearray(len(sealed) - TAG_BYTES)
    try:
        AESGCM(key).decrypt_into(number.to_bytes(NONCE_BYTES, "little"), sealed, None, body)
    except InvalidTag:
        raise damaged() from None
    if method == Method.PLAIN:
        if size > len(body):
            raise damaged()
        return memoryview(body)[:size]
    if method != Method.ZSTD:
        raise Failed(
            f"this was written by a newer version of Croft (method {method})", remedy="Upgrade Croft on this machine."
        )
    try:
        # Read no further than was said: a few bytes may decompress to any number of them.
        opened = _decompressor().stream_reader(body, read_across_frames=False).read(size + 1)
    except zstandard.ZstdError:
        raise damaged() from None
    if len(opened) != size:
        raise damaged()
    return opened


def damaged() -> Failed:
    """What was read passes every check of the holders' shares, and is not what was sealed."""
    return Failed(
        "the data does not open with its key", remedy="The link or the file list is damaged; use another copy of it."
    )


def _compressed(data: memoryview | bytes) -> bytes | None:
    if len(data) < 64:
        return None
    if len(data) > 2 * _TRIED_BYTES:
        middle = len(data) // 2
        tried = data[middle : middle + _TRIED_BYTES]
        if len(_compressor().compress(tried)) > len(tried) * _WORTH_IT:
            return None
    small = _compressor().compress(data)
    return small if len(small) <= len(data) * _WORTH_IT else None


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor(max_window_size=SEGMENT_BYTES * 2)
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor
