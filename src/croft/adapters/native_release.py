"""Frees native objects only where that is safe: on the loop's thread, between two calls into Rust.

Rust wakes a waiter while it holds the lock of that waiter's connection, and the wake-up is a call into Python. If the
garbage collector happens to run in it and finds an old stream of the same connection, freeing the stream takes that
lock again, and the peer stands still for ever. So finalisers only note what is to be freed, and `free_dead` frees it
later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from iroh import iroh_ffi

_dead: deque[tuple[Callable[[Any], Any], Any]] = deque()


class _Remains:
    """What a finaliser of the binding needs of its object."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Any) -> None:
        self._handle = handle


def install() -> int:
    """Makes the finalisers of all the binding's classes wait for `free_dead`. Idempotent; returns how many changed."""
    changed = 0
    for kind in vars(iroh_ffi).values():
        finaliser = vars(kind).get("__del__") if isinstance(kind, type) else None
        if finaliser is not None and kind.__module__ == iroh_ffi.__name__ and not hasattr(finaliser, "is_late"):
            kind.__del__ = _late(finaliser)
            changed += 1
    return changed


def _late(finaliser: Callable[[Any], Any]) -> Callable[[Any], None]:
    # What it needs at the interpreter's end, when globals are gone, is bound here.
    def note(self: Any, *, dead: Any = _dead, finaliser: Any = finaliser, remains: Any = _Remains) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            dead.append((finaliser, remains(handle)))

    note.is_late = True  # type: ignore[attr-defined]  # functions carry what they like
    return note


def bury(free: Callable[[Any], Any], handle: Any) -> None:
    """Leaves `free(handle)` to the next `free_dead`; safe anywhere, also inside the garbage collector."""
    _dead.append((free, handle))


def free_dead() -> None:
    """Frees what finalisers have left. Call it on the loop's thread, never from within a call that Rust made."""
    while True:
        try:
            free, handle = _dead.popleft()
        except IndexError:
            return
        free(handle)


def waiting() -> int:
    """How many objects wait to be freed."""
    return len(_dead)
