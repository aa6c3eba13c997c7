"""Detached jobs for a program that uses asyncio: the twin of `croft.client.durable.Job`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from croft.client.durable import Done, ended, read_outcomes, too_few, until_over
from croft.client.local_api import LocalApi

if TYPE_CHECKING:
    from croft.control import schema

R = TypeVar("R")


class AsyncJob(Generic[R]):
    """A job on this peer's disk. It goes on whatever becomes of this program; see `AsyncGrid.map`, `AsyncGrid.job`."""

    def __init__(self, api: LocalApi, work_socket: Path, job: str) -> None:
        self.id = job
        self._api = api
        self._work_socket = work_socket

    def __repr__(self) -> str:
        return f"<croft.AsyncJob {self.id}>"

    async def status(self) -> schema.Job:
        """How it stands. Raises NotFound once it is forgotten."""
        return await asyncio.to_thread(self._api.job, self.id)

    async def results(self, *, return_exceptions: bool = False) -> AsyncGenerator[R, None]:
        """The results in the order of the items, as soon as they are there; see `Job.results`."""
        task = -1
        async for done in self.outcomes(is_in_order=True):
            task = done.task
            try:
                value = done.value()
            except Exception as error:
                if not return_exceptions:
                    raise
                value = error
            yield value
        if task + 1 < (await self.status()).tasks:
            raise too_few(self.id, task + 1)

    async def as_completed(self) -> AsyncGenerator[tuple[int, R], None]:
        """Pairs of (index of the item, result) in the order in which they were recorded. Raises what a task raised."""
        async for done in self.outcomes():
            yield done.task, done.value()

    async def outcomes(self, *, is_in_order: bool = False) -> AsyncGenerator[Done, None]:
        """What came of each task, until the job is over, without decoding it."""
        async with contextlib.aclosing(read_outcomes(self._work_socket, self.id, is_in_order=is_in_order)) as batches:
            async for batch in batches:
                for done in batch:
                    yield done

    async def wait(self, timeout: float | None = None) -> schema.Job:
        """Waits until it is over. Raises TimedOut after `timeout` seconds."""
        await until_over(self._work_socket, self.id, timeout)
        return ended(await self.status(), timeout)

    async def cancel(self) -> None:
        """Ends it, here and on its peers; what is done can still be read."""
        await asyncio.to_thread(self._api.cancel_job, self.id)

    async def forget(self) -> None:
        """Ends it if it runs, and drops its results from the disk."""
        await asyncio.to_thread(self._api.forget_job, self.id)
