"""Futures as arguments: a call that is given the future of another call runs once that is done, with its value.

Wherever a future stands in the arguments, pickling comes across it. A future whose value stays at a peer is pickled as
a reference to that; any other that is done as its value; one that is not done puts the call off.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import pickle
from collections.abc import Callable
from typing import Any

from croft.client.stored_argument import StoredArgument
from croft.client.task_future import TaskFuture
from croft.compute.worker_values import file_of, value_of
from croft.errors import Cancelled

AnyFuture = concurrent.futures.Future[Any] | asyncio.Future[Any]
Refer = Callable[[TaskFuture], bool]
"""Whether a call may refer to where a future's value is, in place of the value."""


class Reference(bytearray):
    """Stands in a pickle's list of buffers for the value of a task, or for a stored file."""

    to: TaskFuture | StoredArgument


class Unfinished(Exception):
    """The arguments hold a future that is not done, or whose value is not here."""

    def __init__(self, future: AnyFuture) -> None:
        super().__init__("an argument is not there yet")
        self.future = future


class DependencyFailed(Exception):
    """The arguments hold a future whose call failed; `cause` is why."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("what an argument depends on failed")
        self.cause = cause


def is_future(value: object) -> bool:
    """Whether `value` stands for a value that comes later."""
    return isinstance(value, concurrent.futures.Future) or asyncio.isfuture(value)


def reduced(future: Any, refer: Refer) -> tuple[Any, tuple[Any, ...]]:
    """How the value of a future is pickled in its place. Raises Unfinished, DependencyFailed."""
    task = getattr(future, "task", future)
    if isinstance(task, TaskFuture):
        if refer(task):
            reference = Reference(1)
            reference.to = task
            return value_of, (pickle.PickleBuffer(reference),)
        if task.lineage is not None and task.lineage.error is not None:
            raise DependencyFailed(task.lineage.error)
        future = task
        if task.brought is not None:
            future = task.brought
            if not future.done():
                raise Unfinished(task)
    if not future.done():
        raise Unfinished(future)
    if future.cancelled():
        raise DependencyFailed(Cancelled("a task whose result this one needs was cancelled"))
    if (error := future.exception()) is not None:
        raise DependencyFailed(error)
    # What loads to the value itself, by a function that every Python has.
    return operator.getitem, ([future.result()], 0)


def reduced_file(file: StoredArgument) -> tuple[Any, tuple[Any, ...]]:
    """How a stored file is pickled: it is read where the call runs."""
    if not file.size:
        return file_of, (b"", file.name)
    reference = Reference(1)
    reference.to = file
    return file_of, (pickle.PickleBuffer(reference), file.name)


def await_known(future: AnyFuture, fn: Callable[[object], None]) -> None:
    """Calls `fn`, from any thread, when it is worth while to try again to pickle what holds a future."""
    if not isinstance(future, TaskFuture):
        future.add_done_callback(fn)
    elif future.lineage is None or future.lineage.kept is not None:
        # Its value has to come here, or it has none yet.
        (future.when_known if future.lineage is None else future.add_done_callback)(fn)
    elif future.brought is not None:
        future.lineage.session.when_made(future.lineage, fn)
    else:
        future.when_known(fn)
