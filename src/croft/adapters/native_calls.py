"""Starts calls into iroh that nobody can cancel, and without the detours of a task.

The binding's futures lose data when they are dropped half-way, so a call is a `NativeCall`: it runs to its
end whoever waits for it, and the next caller picks it up. A call that is ready at once costs no turn of the
event loop, which is the common case for a stream with room or data.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from iroh import iroh_ffi

from croft.adapters import native_release

T = TypeVar("T")

_original_call: Any = getattr(iroh_ffi, "_uniffi_rust_call_async", None)
_NEEDED = (
    "_UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK",
    "_UNIFFI_RUST_FUTURE_POLL_READY",
    "_UniffiHandleMap",
    "_uniffi_rust_call_with_error",
)


class NativeCall(Generic[T]):
    """A call that has been started. It is driven by what it waits for, not by whoever waits for it."""

    __slots__ = ("_coroutine", "_error", "_value", "_waiters", "is_done")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.is_done = False
        self._step(None)

    async def settled(self) -> None:
        """Waits until the call is done; cancelling the wait changes nothing for the call."""
        if not self.is_done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def result(self) -> T:
        """What the call returned; raises what it raised."""
        assert self.is_done
        if self._error is not None:
            raise self._error
        value: Any = self._value
        result: T = value
        return result

    def cancel(self) -> None:
        """Drops the call, and with it whatever it was about to deliver."""
        if not self.is_done:
            self._coroutine.close()
            native_release.free_dead()
            self._done(asyncio.CancelledError())

    def _step(self, awaited: asyncio.Future[Any] | None) -> None:
        if self.is_done:
            return
        try:
            future = self._coroutine.send(None)
        except StopIteration as stop:
            self._value = stop.value
            self._done(None)
        except BaseException as error:
            # Whatever it is belongs to the caller, who gets it from `result`.
            self._done(error)
        else:
            future._asyncio_future_blocking = False  # what a task does when it takes a future over
            future.add_done_callback(self._step)

    def _done(self, error: BaseException | None) -> None:
        self._error = error
        self.is_done = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Poll:
    """One poll of a Rust future: whether its answer came while the poll was still running, or later."""

    __slots__ = ("code", "future", "is_polling", "loop", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread = threading.get_ident()
        self.is_polling = True
        self.code: int | None = None
        self.future: asyncio.Future[int] | None = None

    def answered(self, code: int) -> None:
        """On the loop's thread: the answer that came later."""
        self.code = code
        if self.future is not None and not self.future.done():
            self.future.set_result(code)


def install() -> bool:
    """Lets calls that are ready at once return at once, if the binding is the known one. Idempotent."""
    if _original_call is None or not all(hasattr(iroh_ffi, name) for name in _NEEDED):
        return False
    # With RUST_BACKTRACE set, every failed dial would symbolise a backtrace, which takes 50 MB and many milliseconds.
    os.environ.setdefault("RUST_LIB_BACKTRACE", "0")
    iroh_ffi._uniffi_rust_call_async = _call
    native_release.install()
    return True


_polls: Any = iroh_ffi._UniffiHandleMap() if hasattr(iroh_ffi, "_UniffiHandleMap") else None


def _continue(handle: int, code: int) -> None:
    """Called by Rust, during a poll on the same thread or later on any."""
    poll: _Poll = _polls.remove(handle)
    if poll.is_polling and threading.get_ident() == poll.thread:
        poll.code = code
    else:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            poll.loop.call_soon_threadsafe(poll.answered, code)


_continuation: Any = (
    iroh_ffi._UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK(_continue)
    if hasattr(iroh_ffi, "_UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK")
    else None
)


async def _call(
    rust_future: int, ffi_poll: Any, ffi_complete: Any, ffi_free: Any, lift: Any, error_converter: Any
) -> Any:
    """What the binding does to await a Rust future, without a turn of the loop if it is ready at once."""
    native_release.free_dead()
    free: Callable[[int], Any] = ffi_free
    try:
        loop = asyncio.get_running_loop()
        while True:
            poll = _Poll(loop)
            ffi_poll(rust_future, _continuation, _polls.insert(poll))
            poll.is_polling = False
            if poll.code is None:
                poll.future = loop.create_future()
                await poll.future
            if poll.code == iroh_ffi._UNIFFI_RUST_FUTURE_POLL_READY:
                break
        return lift(iroh_ffi._uniffi_rust_call_with_error(error_converter, ffi_complete, rust_future))
    except GeneratorExit:
        # Closed midway: by `cancel`, which frees it at once, or by the garbage collector, which must not.
        free = partial(native_release.bury, ffi_free)
        raise
    finally:
        free(rust_future)
