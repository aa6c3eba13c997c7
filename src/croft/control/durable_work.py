"""The work socket's side of jobs that are kept on disk: filling one, and reading what came of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from croft.compute.durable import DurableJobs
from croft.compute.journal_messages import JobSpec
from croft.compute.worker_messages import last_part, leading_parts
from croft.control.work_messages import (
    DefineFunction,
    FromProgram,
    JobOpened,
    JobSealed,
    OpenResults,
    OpenTaskJob,
    ResultsEnded,
    SealJob,
    SubmitTasks,
    TaskOutcomes,
    TaskResultPart,
)
from croft.errors import PeerMisbehaved
from croft.model.ids import JobId, PeerId
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

LABEL_LENGTH_MAX = 200


class JobFactory(Protocol):
    """What is asked of the peer's jobs."""

    @property
    def durable(self) -> DurableJobs: ...

    def check_environment(self, opening: OpenTaskJob) -> None:
        """Raises Failed if the environment that a program asks for is not here."""
        ...

    async def delegate(self, opening: OpenTaskJob, job: JobId) -> None:
        """Gives copies of a job whose tasks are all in to the delegates that its program wants. Raises Refused."""
        ...

    def outcomes(
        self, name: str, *, is_in_order: bool, after: int
    ) -> AsyncIterator[tuple[PeerId, Sequence[tuple[int, int, bytes]]]]:
        """What came of a durable job's tasks, until it is over. Raises NotFound, Unreachable."""
        ...

    def peer_name(self, peer: PeerId) -> str: ...


def spec_of(opening: OpenTaskJob) -> JobSpec:
    """What the journal keeps of how a job's tasks are to run."""
    return JobSpec(
        opening.label[:LABEL_LENGTH_MAX],
        opening.python,
        opening.only,
        opening.never,
        opening.memory_bytes,
        opening.task_s_max,
        opening.needs,
        opening.verify,
        opening.labels,
        opening.retries,
        opening.cpus,
        opening.priority,
        opening.environment,
        opening.deterministic,
    )


async def serve_filling(jobs: JobFactory, opening: OpenTaskJob, messages: MessageStream) -> None:
    """Takes a program's tasks until it seals the job. If it goes away before that, the job is dropped.

    Raises Refused if not as many delegates hold it as were wanted; then it is dropped too.
    """
    jobs.check_environment(opening)
    filling = await jobs.durable.open(spec_of(opening))
    is_sealed = False
    messages.post(JobOpened(filling.id))
    try:
        while (payload := await messages.receive()) is not None:
            message: FromProgram = decode_union(payload, FromProgram, step="local work")
            match message:
                case DefineFunction(digest, pickled):
                    await filling.add_function(digest, pickled)
                case SubmitTasks(function, first, arguments):
                    await filling.add(function, first, arguments)
                case SealJob():
                    tasks = await filling.seal()
                    await jobs.delegate(opening, filling.id)
                    is_sealed = True
                    await messages.send(JobSealed(tasks))
                    await messages.flush()
                    return
                case _:
                    raise PeerMisbehaved(f"{type(message).__name__} while a job is filled", step="local work")
    finally:
        if not is_sealed:
            await filling.drop()


async def serve_results(jobs: JobFactory, opening: OpenResults, messages: MessageStream) -> None:
    """Sends outcomes as they are on disk, here or at another holder, until the job is over.

    Raises NotFound, also for a job that is forgotten meanwhile, and Unreachable if its holder is lost.
    """

    async def send_all() -> None:
        async for peer, outcomes in jobs.outcomes(opening.job, is_in_order=opening.is_in_order, after=opening.after):
            for task, _, payload in outcomes:
                for part in leading_parts(payload):
                    await messages.send(TaskResultPart(task, part))
            rest = [(task, status, last_part(payload)) for task, status, payload in outcomes]
            await messages.send(TaskOutcomes(peer, jobs.peer_name(peer), rest))
        await messages.send(ResultsEnded())
        await messages.flush()

    sending = asyncio.create_task(send_all(), name="results.send")
    listening = asyncio.create_task(messages.receive(), name="results.hung_up")
    try:
        await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        sending.cancel()
        listening.cancel()
        await asyncio.gather(sending, listening, return_exceptions=True)
