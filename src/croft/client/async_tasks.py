"""Tasks for a program that uses asyncio: futures that are asked for, and waiting that asks for nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from contextvars import Context
from typing import Any

from croft.client.task_future import TaskFuture


class AsyncTaskFuture(asyncio.Future[Any]):
    """The asyncio twin of a task's future. To await it, or to look whether it is done, asks for the value."""

    def __init__(self, task: TaskFuture) -> None:
        super().__init__()
        self.task = task
        """What it stands for: calls that are given this future refer to that."""
        self._is_followed = False

    def add_done_callback(self, fn: Callable[[Any], object], *, context: Context | None = None) -> None:
        """See `asyncio.Future.add_done_callback`; whatever awaits comes here."""
        self._follow()
        super().add_done_callback(fn, context=context)

    def done(self) -> bool:
        """Whether the value is here, or will never be."""
        self._follow()
        return super().done()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancels the task too, also while it runs."""
        is_cancelled = super().cancel(msg)
        if is_cancelled:
            self.task.cancel()
        return is_cancelled

    def _follow(self) -> None:
        if self._is_followed:
            return
        self._is_followed = True
        # Let go once it is told: the task's value is to go with the last that stands for it.
        loop, waiting = self.get_loop(), [self]

        def ended(_: object) -> None:
            future = waiting.pop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(future._take)

        self.task.add_done_callback(ended)

    def _take(self) -> None:
        if super().done():
            return
        try:
            value = self.task.result(0)
        except concurrent.futures.CancelledError:
            super().cancel()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(value)


async def await_done(task: TaskFuture) -> None:
    """Waits until a task is done; its value may be elsewhere. Raises what it has raised."""
    loop, known = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: object) -> None:
        loop.call_soon_threadsafe(known.set)

    task.when_known(tell)
    await known.wait()
    if task.done() and (error := task.exception()) is not None:
        raise error
