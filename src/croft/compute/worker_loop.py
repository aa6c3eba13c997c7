"""Calls back when a descriptor is ready or a time is due, and carries frames to and from the worker's peer.

Single-threaded on purpose: the worker forks, and a fork of a threaded process is not safe. Uses `select` and plain
descriptors only, because every import delays the start of a box.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable

from croft.wire.codec import Message, encode
from croft.wire.frames import FrameReader, frame

READ_BYTES = 1 << 20
WAITING_BYTES_MAX = 4 << 20
"""Above this many unsent bytes the worker stops taking output from runners and commands until the peer reads."""


class Loop:
    """Descriptors to callbacks, level-triggered, and timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def watch(self, descriptor: int, callback: Callable[[], None], *, for_writing: bool = False) -> None:
        """Calls `callback` whenever `descriptor` can be read (or written), until `forget`."""
        self._epoll.register(descriptor, select.EPOLLOUT if for_writing else select.EPOLLIN)
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Stops watching. Does nothing if the descriptor is not watched."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def watches(self, descriptor: int) -> bool:
        """Whether `descriptor` is being watched."""
        return descriptor in self._callbacks

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Calls `callback` once, at or after `when` on the monotonic clock."""
        heapq.heappush(self._timers, (when, next(self._order), callback))

    def turn(self, wait_s_max: float | None = None) -> bool:
        """Handles what happens next, within `wait_s_max` seconds; returns whether nothing did."""
        timeout = -1.0 if wait_s_max is None else wait_s_max
        if self._timers:
            due = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = due if wait_s_max is None else min(due, wait_s_max)
        try:
            ready = self._epoll.poll(timeout)
        except InterruptedError:
            ready = []
        for descriptor, callback in [(descriptor, self._callbacks.get(descriptor)) for descriptor, _ in ready]:
            # A callback of this turn may have closed a later descriptor, and a new one may bear its number.
            if callback is not None and self._callbacks.get(descriptor) is callback:
                callback()
        return not self._call_due() and not ready

    def _call_due(self) -> bool:
        now = time.monotonic()
        has_called = False
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
            has_called = True
        return has_called


class PeerLink:
    """Frames over the inherited, non-blocking socket. Unsent bytes wait here; `is_congested` says when to hold back."""

    def __init__(self, loop: Loop, descriptor: int, receive: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._receive = receive
        self._reader = FrameReader(step="worker")
        self._waiting: deque[bytes | memoryview] = deque()
        self._waiting_bytes = 0
        self._has_held_back = False
        self.on_relief: list[Callable[[], None]] = []
        self.is_closed = False
        # Reading and writing need two registrations, and epoll takes each descriptor once.
        self._writable = os.dup(descriptor)
        loop.watch(descriptor, self._read)

    @property
    def is_congested(self) -> bool:
        """Whether the peer does not keep up. Who is told so is called back through `on_relief`."""
        is_congested = self._waiting_bytes > WAITING_BYTES_MAX
        self._has_held_back |= is_congested
        return is_congested

    def send(self, message: Message) -> None:
        """Queues a message; `flush` sends it."""
        framed = frame(encode(message))
        self._waiting.append(framed)
        self._waiting_bytes += len(framed)

    def flush(self) -> None:
        """Sends what the socket takes now and the rest when it takes more."""
        while self._waiting:
            if len(self._waiting) > 1 and len(self._waiting[0]) < READ_BYTES:
                self._coalesce()
            head = self._waiting[0]
            try:
                sent = os.write(self._descriptor, head)
            except BlockingIOError:
                break
            except OSError:
                self.is_closed = True
                return
            self._waiting_bytes -= sent
            if sent == len(head):
                self._waiting.popleft()
            else:
                self._waiting[0] = memoryview(head)[sent:]
        if bool(self._waiting) != self._loop.watches(self._writable):
            if self._waiting:
                self._loop.watch(self._writable, self.flush, for_writing=True)
            else:
                self._loop.forget(self._writable)
        if self._has_held_back and self._waiting_bytes <= WAITING_BYTES_MAX:
            self._has_held_back = False
            for relieved in self.on_relief:
                relieved()

    def _coalesce(self) -> None:
        parts: list[bytes | memoryview] = []
        size = 0
        while self._waiting and size < READ_BYTES:
            parts.append(self._waiting.popleft())
            size += len(parts[-1])
        self._waiting.appendleft(b"".join(parts))

    def _read(self) -> None:
        try:
            received = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.is_closed = True
            return
        for payload in self._reader.feed(received):
            self._receive(payload)
