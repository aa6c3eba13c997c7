"""Decides what of a stream to send again when the connection under it has been replaced: nothing lost, nothing twice.

Each side keeps what it has sent until the other's reader has taken it. When a new stream is put under it, each says how
far it has received, and the other goes on from there. A window bounds what is kept. Sans-IO: bytes go in and out.

On the wire, frames of a kind, a 32-bit size and a payload; bytes are counted from the start of the stream, and the end
counts as one more.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from croft.errors import PeerMisbehaved

WINDOW_BYTES: Final = 8 << 20
CONSUMED_EVERY_BYTES: Final = 512 << 10
COALESCED_BYTES_MAX: Final = 64 << 10
FRAME_BYTES_MAX: Final = 1 << 20
HEAD_BYTES: Final = 5
DATA, CONSUMED, RECEIVED, END = 0, 1, 2, 3
_NUMBER_BYTES: Final = 8
STEP: Final = "lasting stream"


class Resumption:
    """One end of a stream that outlives its connections."""

    def __init__(self) -> None:
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._written = 0
        self._taken = 0
        self._cursor = 0
        self._is_finished = False
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._is_far_finished = False
        self._consumed = 0
        self._consumed_told = 0
        self._is_told_at_once = False
        self._must_tell_received = False
        self._is_waiting_for_received = False
        self._partial = bytearray()
        self.received = 0

    # --- what is sent ------------------------------------------------------------------------------------------------

    @property
    def room_bytes(self) -> int:
        """How much may be written before the other side's reader has to take something; may be negative."""
        return WINDOW_BYTES - (self._written - self._taken)

    @property
    def is_waiting(self) -> bool:
        """Whether the other side has not yet taken all that was written."""
        return self._taken < self._total

    @property
    def is_finished(self) -> bool:
        """Whether this side will write no more."""
        return self._is_finished

    def write(self, data: bytes) -> None:
        """Keeps `data` until it has been taken."""
        assert not self._is_finished, "nothing may be written after finish"
        if data:
            self._unsent.append(data)
            self._written += len(data)

    def finish(self) -> None:
        """This side will write no more."""
        self._is_finished = True

    @property
    def _total(self) -> int:
        return self._written + self._is_finished

    def next_frame(self) -> bytes:
        """What to put on the stream now; empty if there is nothing to say."""
        if self._must_tell_received:
            self._must_tell_received = False
            return _number(RECEIVED, self.received)
        if self._consumed - self._consumed_told >= (1 if self._is_told_at_once else CONSUMED_EVERY_BYTES):
            self._consumed_told = self._consumed
            return _number(CONSUMED, self._consumed)
        if self._is_waiting_for_received or self._cursor >= self._total:
            return b""
        if self._cursor == self._written:
            self._cursor += 1
            return END.to_bytes(1, "big") + bytes(4)
        part = self._unsent.popleft()
        if len(part) > FRAME_BYTES_MAX:
            self._unsent.appendleft(part[FRAME_BYTES_MAX:])
            part = part[:FRAME_BYTES_MAX]
        elif len(part) < COALESCED_BYTES_MAX and self._unsent:
            small = [part]
            size = len(part)
            while self._unsent and size + len(self._unsent[0]) <= COALESCED_BYTES_MAX:
                size += len(self._unsent[0])
                small.append(self._unsent.popleft())
            part = b"".join(small)
        self._sent.append(part)
        self._cursor += len(part)
        return b"".join((bytes([DATA]), len(part).to_bytes(4, "big"), part))

    # --- what is received --------------------------------------------------------------------------------------------

    @property
    def has_data(self) -> bool:
        """Whether `take` would give something."""
        return bool(self._inbox)

    @property
    def is_at_end(self) -> bool:
        """Whether all that the other side will ever write has been taken."""
        return self._is_far_finished and not self._inbox

    def feed(self, data: bytes) -> None:
        """Takes in what came. Raises PeerMisbehaved if it breaks the protocol."""
        buffer = self._partial
        buffer += data
        position = 0
        while len(buffer) - position >= HEAD_BYTES:
            kind, size = buffer[position], int.from_bytes(buffer[position + 1 : position + HEAD_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                raise PeerMisbehaved(f"frame of {size} bytes", step=STEP)
            end = position + HEAD_BYTES + size
            if len(buffer) < end:
                break
            self._frame(kind, bytes(memoryview(buffer)[position + HEAD_BYTES : end]))
            position = end
        if position:
            del buffer[:position]

    def take(self, size_bytes_max: int) -> bytes:
        """The next bytes for the reader."""
        part = self._inbox.popleft()
        if len(part) > size_bytes_max:
            self._inbox.appendleft(part[size_bytes_max:])
            part = part[:size_bytes_max]
        self._inbox_bytes -= len(part)
        self._consumed += len(part)
        self._is_told_at_once = False
        return part

    def reader_waits(self) -> None:
        """The reader has taken all that there is, and the other side may know: nobody need keep it any longer."""
        self._is_told_at_once = True
        if self.is_at_end:
            self._consumed = self.received

    def _frame(self, kind: int, payload: bytes) -> None:
        match kind:
            case 0:
                self._data(payload)
            case 3 if not payload and not self._is_far_finished:
                self._is_far_finished = True
                self.received += 1
            case 1:
                self._taken_to(_read(payload))
            case 2 if self._is_waiting_for_received:
                self._go_on_from(_read(payload))
            case _:
                raise PeerMisbehaved(f"a frame of kind {kind} that is none, or out of turn", step=STEP)

    def _data(self, payload: bytes) -> None:
        if self._is_far_finished or not payload:
            raise PeerMisbehaved("bytes after the end, or none", step=STEP)
        self.received += len(payload)
        self._inbox_bytes += len(payload)
        if self._inbox_bytes > WINDOW_BYTES + 2 * FRAME_BYTES_MAX:
            raise PeerMisbehaved("more than the window allows", step=STEP)
        self._inbox.append(payload)

    def _taken_to(self, offset: int) -> None:
        if not self._taken <= offset <= min(self._cursor, self._total):
            raise PeerMisbehaved(f"{offset} bytes taken of {self._cursor} sent", step=STEP)
        gone, self._taken = min(offset, self._written) - min(self._taken, self._written), offset
        while gone > 0:
            part = self._sent.popleft()
            if len(part) > gone:
                self._sent.appendleft(part[gone:])
            gone -= len(part)

    # --- the stream under it -----------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether both sides have written and taken all; then the stream under it may go."""
        is_told = self._consumed_told == self.received
        return self._is_finished and self._taken == self._total and self.is_at_end and is_told

    def opened_again(self) -> None:
        """This side put a new stream under it; the other will say how far it has received."""
        self._partial.clear()
        self._is_waiting_for_received = True
        self._consumed_told = min(self._consumed_told, self._consumed - 1)
        self._is_told_at_once = True

    def attached_again(self, their_received: int) -> None:
        """The other side put a new stream under it, having received so much. Raises PeerMisbehaved."""
        self._partial.clear()
        self._must_tell_received = True
        self._go_on_from(their_received)

    def _go_on_from(self, offset: int) -> None:
        if not self._taken <= offset <= self._total:
            raise PeerMisbehaved(f"{offset} bytes received of {self._total} written", step=STEP)
        self._is_waiting_for_received = False
        # All that was not taken is to be sent again, but for what the other side has received.
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        received = min(offset, self._written) - min(self._taken, self._written)
        while received > 0:
            part = self._unsent.popleft()
            if len(part) > received:
                self._unsent.appendleft(part[received:])
                part = part[:received]
            self._sent.append(part)
            received -= len(part)
        self._cursor = offset
        # What was said of it last may have been lost on the way.
        self._consumed_told = min(self._consumed_told, self._consumed - 1)
        self._is_told_at_once = True


def _number(kind: int, value: int) -> bytes:
    return bytes([kind]) + _NUMBER_BYTES.to_bytes(4, "big") + value.to_bytes(_NUMBER_BYTES, "big")


def _read(payload: bytes) -> int:
    if len(payload) != _NUMBER_BYTES:
        raise PeerMisbehaved("a number of the wrong size", step=STEP)
    return int.from_bytes(payload, "big")
