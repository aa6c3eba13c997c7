"""Futures as arguments: a call that is given the future of another call runs once that is done, with its value.

Wherever a future stands in the arguments, pickling comes across it: a future that is done is pickled as its value, one
that is not puts the call off.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
from typing import Any

from croft.errors import Cancelled

AnyFuture = concurrent.futures.Future[Any] | asyncio.Future[Any]


class Unfinished(Exception):
    """The arguments hold a future that is not done."""

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


def reduced(future: Any) -> tuple[Any, tuple[Any, int]]:
    """How the value of a future that is done is pickled in its place. Raises Unfinished, DependencyFailed."""
    if not future.done():
        raise Unfinished(future)
    if future.cancelled():
        raise DependencyFailed(Cancelled("a task whose result this one needs was cancelled"))
    if (error := future.exception()) is not None:
        raise DependencyFailed(error)
    # What loads to the value itself, by a function that every Python has.
    return operator.getitem, ([future.result()], 0)
