"""What stands for the value of a task: a future, which asks for a value that stays elsewhere when it is wanted."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Session(Protocol):
    """What a future needs of the job it is of; see `croft.client.task_session.TaskSession`. From any thread."""

    def forget(self, number: int) -> bool:
        """Nobody waits for a task. Whether it was still open."""
        ...

    def want(self, future: TaskFuture) -> None:
        """Somebody waits for a future's value: if it stays elsewhere, it is to come."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a value is: at a peer, under a token, with the BLAKE3 digest of its bytes."""

    peer: str
    token: bytes
    size: int
    digest: bytes


@dataclass(slots=True, eq=False, weakref_slot=True)
class Lineage:
    """How a task's value came about, for as long as it may have to be made again. Changed by its session's loop alone.

    Attributes:
        buffers: what the task's arguments refer to: buffers by digest, and the values of other tasks.
        sent: which tokens these values had when it was sent last, by digest.
        kept: where its own value is; None while that is nowhere. last: where it was last.
        users: open tasks that need its value. is_let_go: no future stands for it any more.
        is_personal: its value is of use only as this program sends it. value: what it is, if it came here only.
        made: how often it has been made again; error: why it is not, any more. waiting: told of either.
    """

    session: Any
    number: int
    buffers: list[bytes | Lineage] = field(default_factory=list)
    sent: dict[bytes, bytes] = field(default_factory=dict)
    kept: Kept | None = None
    last: Kept | None = None
    users: dict[Lineage, None] = field(default_factory=dict)
    is_let_go: bool = False
    is_personal: bool = False
    value: concurrent.futures.Future[Any] | None = None
    made: int = 0
    error: BaseException | None = None
    waiting: list[Callable[[BaseException | None], None]] = field(default_factory=list)


class TaskFuture(concurrent.futures.Future[Any]):
    """A task's future. Unlike those of a local pool it can also be cancelled while the task runs, on its peer.

    It is done when its task is. A large value may stay at its peer; then `result` brings it, as does whatever asks to
    be told of it by `add_done_callback`.
    """

    def __init__(self, session: Session, number: int = 0) -> None:
        super().__init__()
        self._session = session
        self.number = number
        """Within its session; below 0 while it waits for what it depends on."""
        self.log = ""
        """What the task printed, where that was asked for and once it is done."""
        self.may_stay = False
        """Whether its value may stay elsewhere."""
        self.is_wanted = False
        """Whether anybody waits for the value."""
        self.lineage: Lineage | None = None
        self.brought: concurrent.futures.Future[Any] | None = None
        """Of a value that stays elsewhere: what it will be once it is brought."""
        self._on_known: list[Callable[[object], None]] | None = None

    def cancel(self) -> bool:
        """Whether the task is cancelled; False once it is done."""
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        # Whoever takes the future out of the session tells those who wait for it: we, or an outcome that comes now.
        if self._session.forget(self.number):
            self.set_running_or_notify_cancel()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """The value, brought here if it is elsewhere. Raises as the task did, TimeoutError, CancelledError."""
        started = 0.0 if timeout is None else time.monotonic()
        if not self.is_wanted:
            self._session.want(self)
        value = super().result(timeout)
        if self.brought is None:
            return value
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - started))
        return self.brought.result(left)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Calls `fn` with this future once its value is here; see `concurrent.futures.Future.add_done_callback`."""
        self._session.want(self)
        if self.brought is None:
            super().add_done_callback(fn)
        else:
            # Let go once it is told: the value is to go with the last that stands for it.
            waiting = [self]
            self.brought.add_done_callback(lambda _: fn(waiting.pop()))

    def when_known(self, fn: Callable[[object], None]) -> None:
        """Calls `fn`, once or twice, when it is known where the value is, or that there is none."""
        self._on_known = [*(self._on_known or ()), fn]
        super().add_done_callback(fn)
        if self.lineage is not None and self.lineage.kept is not None:
            fn(self)

    def tell_known(self) -> None:
        """Where the value is, is known now."""
        told, self._on_known = self._on_known, None
        for fn in told or ():
            fn(self)
