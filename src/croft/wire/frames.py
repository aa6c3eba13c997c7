"""Cuts a stream of bytes into frames: a 32-bit big-endian length, then that many bytes.

Sans-IO: bytes go in, whole frames come out.
"""

from __future__ import annotations

from collections.abc import Iterable

from croft.errors import PeerMisbehaved

HEADER_BYTES = 4
FRAME_BYTES_MAX = 72 << 20


def frame(payload: bytes) -> bytes:
    """One frame around `payload`, which must not exceed FRAME_BYTES_MAX."""
    assert len(payload) <= FRAME_BYTES_MAX, "the sender checks sizes before framing"
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def join(payloads: Iterable[bytes]) -> bytes:
    """Several frames in one piece, for one write."""
    parts: list[bytes] = []
    for payload in payloads:
        assert len(payload) <= FRAME_BYTES_MAX, "the sender checks sizes before framing"
        parts.append(len(payload).to_bytes(HEADER_BYTES, "big"))
        parts.append(payload)
    return b"".join(parts)


class FrameReader:
    """Collects bytes and yields whole frames, in order. A frame over the limit is refused before it is buffered."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX, *, step: str) -> None:
        self._limit = frame_bytes_max
        self._step = step
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes. Raises PeerMisbehaved for a frame over the limit."""
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        position = 0
        while len(buffer) - position >= HEADER_BYTES:
            size = int.from_bytes(buffer[position : position + HEADER_BYTES], "big")
            if size > self._limit:
                raise PeerMisbehaved(f"frame of {size} bytes, limit is {self._limit}", step=self._step)
            end = position + HEADER_BYTES + size
            if len(buffer) < end:
                break
            frames.append(bytes(memoryview(buffer)[position + HEADER_BYTES : end]))
            position = end
        if position:
            del buffer[:position]
        return frames

    @property
    def is_empty(self) -> bool:
        """Whether no part of a frame is waiting for its rest."""
        return not self._buffer
