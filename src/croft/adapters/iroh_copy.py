"""Makes the iroh binding copy a buffer in one piece instead of byte by byte: forty times the throughput.

The wheel's generated glue (uniffi before 0.32) moves every byte with a Python statement when it passes a
buffer to Rust. `install` replaces that one method, only for the versions it was written against and only if
the replacement proves itself on the spot; otherwise iroh stays as it is, correct and slow. A test fails once
this is not needed.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import struct
from collections.abc import Callable
from typing import Any

from iroh import iroh_ffi

VERSION_PREFIX = "1.2."
_PROBE = bytes(range(256)) * 5

_builder: Any = getattr(iroh_ffi, "_UniffiRustBufferBuilder", None)
original_write: Callable[[Any, bytes], None] | None = getattr(_builder, "write", None)
"""The binding's own method, for the test that compares it with ours."""
_original_pack: Callable[[Any, int, str, object], None] | None = getattr(_builder, "_pack_into", None)


def bulk_write(builder: Any, value: bytes | bytearray | memoryview) -> None:
    """Appends `value` to a buffer owned by Rust, in one copy."""
    size = len(value)
    if not size:
        return  # an empty buffer's pointer may be NULL
    source = value if isinstance(value, bytes) else bytes(value)
    with builder._reserve(size):
        target = ctypes.addressof(builder.rbuf.data.contents) + builder.rbuf.len
        ctypes.memmove(target, source, size)


def _bulk_pack(builder: Any, size: int, layout: str, value: object) -> None:
    bulk_write(builder, struct.pack(layout, value))


def install() -> bool:
    """Replaces the copy if that is safe, and says whether it is now in place. Idempotent."""
    if _builder is None or original_write is None or _original_pack is None:
        return False
    if not importlib.metadata.version("iroh").startswith(VERSION_PREFIX):
        return False
    if not all(hasattr(_builder, name) for name in ("_reserve", "finalize", "discard")):
        return False
    _builder.write = bulk_write
    _builder._pack_into = _bulk_pack
    if not _round_trip_holds():
        _builder.write = original_write
        _builder._pack_into = _original_pack
        return False
    return True


def _round_trip_holds() -> bool:
    builder = _builder()
    builder.write_i32(len(_PROBE))
    builder.write(_PROBE)
    buffer = builder.finalize()
    try:
        copied: bytes = ctypes.string_at(buffer.data, buffer.len)
    finally:
        buffer.free()
    return copied == len(_PROBE).to_bytes(4, "big") + _PROBE
