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
CONSUMED_EVERY_BYTES: Final = 1 << 20
COALESCED_BYTES_MAX: Final = 256 << 10
FRAME_BYTES_MAX: Final = 1 << 20
JOINED_BYTES_MAX: Final = 64 << 10
"""A reader gets small pieces together; to join large ones would cost more than it saves."""
HEAD_BYTES: Final = 5
DATA, CONSUMED, RECEIVED, END = 0, 1, 2, 3
_NUMBER_BYTES: Final = 8
STEP: Final = "lasting stream"


class Resumption:
    """One end of a stream that outlives its connections."""

    def __init__(self) -> None:
        # Views, because what is sent, kept and sent again is cut at other places each time.
        self._sent: deque[memoryview] = deque()
        self._unsent: deque[memoryview] = deque()
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
        self._data_left = 0
        self.received = 0

    # --- what is sent ------------------------------------------------------------------------------------------------

    @property
    def room_bytes(self) -> int:
        """How much may be written before the other side's reader has to take something; may be negative."""
        return WINDOW_BYTES - (self._written - self._taken)

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not gone out."""
        return self._written - min(self._cursor, self._written)

    @property
    def is_waiting(self) -> bool:
        """Whether the other side has not yet taken all that was written."""
        return self._taken < self._total

    @property
    def is_finished(self) -> bool:
        """Whether this side will write no more."""
        return self._is_finished

    def write(self, data: bytes) -> None:
        """Keeps `data` itself, not a copy, until it has been taken."""
        assert not self._is_finished, "nothing may be written after finish"
        if data:
            self._unsent.append(memoryview(data))
            self._written += len(data)

    def finish(self) -> None:
        """This side will write no more."""
        self._is_finished = True

    @property
    def _total(self) -> int:
        return self._written + self._is_finished

    @property
    def _must_tell_consumed(self) -> bool:
        return self._consumed - self._consumed_told >= (1 if self._is_told_at_once else CONSUMED_EVERY_BYTES)

    @property
    def has_frame(self) -> bool:
        """Whether there is something to say."""
        if self._must_tell_received or self._must_tell_consumed:
            return True
        return not self._is_waiting_for_received and self._cursor < self._total

    def next_frame(self) -> bytes:
        """What to put on the stream now; empty if there is nothing to say."""
        if self._must_tell_received:
            self._must_tell_received = False
            return _number(RECEIVED, self.received)
        if self._must_tell_consumed:
            self._consumed_told = self._consumed
            return _number(CONSUMED, self._consumed)
        if self._is_waiting_for_received or self._cursor >= self._total:
            return b""
        if self._cursor == self._written:
            self._cursor += 1
            return END.to_bytes(1, "big") + bytes(4)
        parts = [self._unsent.popleft()]
        size = len(parts[0])
        if size > FRAME_BYTES_MAX:
            self._unsent.appendleft(parts[0][FRAME_BYTES_MAX:])
            parts[0] = parts[0][:FRAME_BYTES_MAX]
            size = FRAME_BYTES_MAX
        while self._unsent and size + len(self._unsent[0]) <= COALESCED_BYTES_MAX:
            size += len(self._unsent[0])
            parts.append(self._unsent.popleft())
        self._sent.extend(parts)
        self._cursor += size
        return b"".join((bytes([DATA]), size.to_bytes(4, "big"), *parts))

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
        position = 0
        while position < len(data):
            if self._data_left:
                # Bytes are handed on as they come: to wait for whole frames would copy them once more.
                part = data[position : position + self._data_left] if position or len(data) > self._data_left else data
                position += len(part)
                self._data_left -= len(part)
                self._data(part)
                continue
            needed = self._needed()
            part = data[position : position + needed - len(self._partial)]
            position += len(part)
            self._partial += part
            if len(self._partial) == needed == self._needed():
                self._begin_frame()

    def _needed(self) -> int:
        """The size of the frame that has begun to come, as far as it is known; of one with data only the head."""
        if len(self._partial) < HEAD_BYTES or self._partial[0] == DATA:
            return HEAD_BYTES
        size = int.from_bytes(self._partial[1:HEAD_BYTES], "big")
        if size > _NUMBER_BYTES:
            raise PeerMisbehaved(f"a frame of kind {self._partial[0]} and {size} bytes", step=STEP)
        return HEAD_BYTES + size

    def _begin_frame(self) -> None:
        kind, payload = self._partial[0], bytes(self._partial[HEAD_BYTES:])
        size = int.from_bytes(self._partial[1:HEAD_BYTES], "big")
        self._partial.clear()
        if kind != DATA:
            self._frame(kind, payload)
            return
        if not 0 < size <= FRAME_BYTES_MAX or self._is_far_finished:
            raise PeerMisbehaved(f"{size} bytes of data, or some after the end", step=STEP)
        self._data_left = size

    def take(self, size_bytes_max: int) -> bytes:
        """The next bytes for the reader."""
        part = self._inbox.popleft()
        joined_bytes_max = min(size_bytes_max, JOINED_BYTES_MAX)
        if len(part) > size_bytes_max:
            self._inbox.appendleft(part[size_bytes_max:])
            part = part[:size_bytes_max]
        elif self._inbox and len(part) + len(self._inbox[0]) <= joined_bytes_max:
            some, size = [part], len(part)
            while self._inbox and size + len(self._inbox[0]) <= joined_bytes_max:
                size += len(self._inbox[0])
                some.append(self._inbox.popleft())
            part = b"".join(some)
        self._inbox_bytes -= len(part)
        self._consumed += len(part)
        self._is_told_at_once = False
        return part

    def tell_consumed(self) -> None:
        """The other side is to know what was taken, however little: nobody need keep it any longer."""
        self._is_told_at_once = True
        if self.is_at_end:
            self._consumed = self.received

    def _frame(self, kind: int, payload: bytes) -> None:
        match kind:
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
        self._forget_half_a_frame()
        self._is_waiting_for_received = True
        self._consumed_told = min(self._consumed_told, self._consumed - 1)
        self._is_told_at_once = True

    def attached_again(self, their_received: int) -> None:
        """The other side put a new stream under it, having received so much. Raises PeerMisbehaved."""
        self._forget_half_a_frame()
        self._must_tell_received = True
        self._go_on_from(their_received)

    def _forget_half_a_frame(self) -> None:
        self._partial.clear()
        self._data_left = 0

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
