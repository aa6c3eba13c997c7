"""A job in a world: submitted as a program would, its outcomes kept and counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import cloudpickle
from blake3 import blake3

from croft.compute.environment import Environment
from croft.compute.job import Outcome
from croft.compute.worker_messages import LoadFunction, Status
from croft.control.durable_work import spec_of
from croft.control.work_messages import OpenTaskJob
from croft.errors import CroftError
from croft.model.ids import JobId, PeerId
from croft.node.jobs import JobBook
from croft.sim.sandbox import PYTHON
from croft.wire.values import decode_value


async def hand_over(
    book: JobBook,
    function: Callable[..., object],
    arguments: Sequence[object],
    *,
    delegates: int | Sequence[PeerId] = 0,
    batch: int = 500,
    environment: Environment | None = None,
) -> JobId:
    """Submits a durable job of one task per argument, as a program would; all of it is on disk when this returns."""
    named, count = ((), delegates) if isinstance(delegates, int) else (tuple(delegates), 0)
    opening = OpenTaskJob(
        "simulated",
        PYTHON,
        [],
        [],
        is_durable=True,
        delegates=named,
        delegates_wanted=count,
        environment=environment,
    )
    filling = await book.durable.open(spec_of(opening))
    pickled = cloudpickle.dumps(function)
    digest = blake3(pickled).digest()
    await filling.add_function(digest, pickled)
    for first in range(0, len(arguments), batch):
        each = [cloudpickle.dumps(((one,), {})) for one in arguments[first : first + batch]]
        await filling.add(digest, first, each)
    await filling.seal()
    await book.delegate(opening, filling.id)
    return filling.id


class SimulatedJob:
    """One task per argument. `running` ends when every task has an outcome, or when the job fails.

    Attributes:
        outcomes: by task: who did it, how it ended, and its payload.
        records: how often each task's outcome was recorded.
        ended_at: virtual time of the last outcome.
    """

    def __init__(
        self,
        book: JobBook,
        function: Callable[..., object],
        arguments: Sequence[object],
        *,
        only: Sequence[PeerId] = (),
        never: Sequence[PeerId] = (),
        task_s_max: float = 0.0,
        verify: str = "",
        environment: Environment | None = None,
    ) -> None:
        self.outcomes: dict[int, tuple[PeerId, int, bytes]] = {}
        self.records: Counter[int] = Counter()
        self.started_at = self.ended_at = asyncio.get_running_loop().time()
        self._count = len(arguments)
        self._book = book
        self._is_complete = asyncio.Event()
        opening = OpenTaskJob(
            "simulated",
            PYTHON,
            list(only),
            list(never),
            task_s_max=task_s_max,
            verify=verify,
            environment=environment,
        )
        self.tasks = book.task_job(opening, self._heard)
        pickled = cloudpickle.dumps(function)
        digest = blake3(pickled).digest()
        self.tasks.add_function(LoadFunction(digest, pickled, PYTHON))
        self.tasks.add(digest, range(self._count), [cloudpickle.dumps(((one,), {})) for one in arguments])
        self.running = asyncio.create_task(self._run(), name=f"simulated job {self.tasks.id}")

    async def values(self) -> list[object]:
        """What the tasks returned, in order. Raises the job's error; fails if a task failed or counted twice."""
        await asyncio.shield(self.running)
        assert not self.doubt(), self.doubt()
        failed = {task: payload for task, (_, status, payload) in self.outcomes.items() if status != Status.OK}
        assert not failed, f"tasks failed: {failed}"
        return [decode_value(self.outcomes[task][2]) for task in range(self._count)]

    def doubt(self) -> str:
        """Which tasks were not recorded exactly once."""
        wrong = {task: self.records[task] for task in range(self._count) if self.records[task] != 1}
        return f"recorded not once but: {wrong}" if wrong else ""

    def done_by(self, peer: PeerId) -> int:
        """How many tasks a peer did."""
        return sum(1 for by, _, _ in self.outcomes.values() if by == peer)

    async def _run(self) -> None:
        running = asyncio.create_task(self.tasks.run(), name=f"job {self.tasks.id}")
        complete = asyncio.create_task(self._is_complete.wait(), name=f"job {self.tasks.id} complete")
        error: CroftError | None = None
        try:
            await asyncio.wait({running, complete}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        except CroftError as failure:
            error = failure
            raise
        finally:
            for task in (running, complete):
                task.cancel()
            await asyncio.gather(running, complete, return_exceptions=True)
            await self._book.ended(self.tasks.id, error)

    def _heard(self, peer: PeerId, outcomes: Sequence[Outcome]) -> None:
        for task, status, payload in outcomes:
            self.records[task] += 1
            self.outcomes[task] = (peer, status, payload)
        self.ended_at = asyncio.get_running_loop().time()
        if len(self.outcomes) == self._count:
            self._is_complete.set()
