"""The work socket's side of jobs that are kept on disk: filling one, and reading what came of one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from croft.compute.durable import DurableJobs
from croft.compute.journal import JournalOutcome
from croft.compute.journal_messages import JobSpec
from croft.compute.worker_messages import PART_BYTES
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


def spec_of(opening: OpenTaskJob) -> JobSpec:
    """What the journal keeps of how a job's tasks are to run."""
    return JobSpec(
        opening.label[:LABEL_LENGTH_MAX],
        opening.python,
        opening.only,
        opening.never,
        opening.memory_bytes,
        opening.task_s_max,
        opening.verify,
    )


async def serve_filling(jobs: DurableJobs, opening: OpenTaskJob, messages: MessageStream) -> None:
    """Takes a program's tasks until it seals the job. If it goes away before that, the job is dropped."""
    filling = await jobs.open(spec_of(opening))
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
                    is_sealed = True
                    await messages.send(JobSealed(tasks))
                    await messages.flush()
                    return
                case _:
                    raise PeerMisbehaved(f"{type(message).__name__} while a job is filled", step="local work")
    finally:
        if not is_sealed:
            await filling.drop()


async def serve_results(
    jobs: DurableJobs, peer_name: Callable[[PeerId], str], opening: OpenResults, messages: MessageStream
) -> None:
    """Sends outcomes as they are on disk, until the job is over. Raises NotFound, also for one that is forgotten."""
    job = JobId(opening.job)
    after = opening.after
    while True:
        entry = await jobs.find(job)
        change = jobs.next_change(entry.number)
        outcomes = await jobs.journal.outcomes_after(entry.number, after, in_order=opening.is_in_order)
        if outcomes:
            after = outcomes[-1].task + 1 if opening.is_in_order else outcomes[-1].place
            await _send(outcomes, peer_name, messages)
        elif entry.is_over:
            await messages.send(ResultsEnded(entry.state))
            await messages.flush()
            return
        elif await _has_hung_up(messages, change):
            return


async def _has_hung_up(messages: MessageStream, change: asyncio.Event) -> bool:
    """Waits for a change; whether the program went away instead."""
    waiting = asyncio.create_task(change.wait(), name="results.change")
    listening = asyncio.create_task(messages.receive(), name="results.hung_up")
    try:
        await asyncio.wait({waiting, listening}, return_when=asyncio.FIRST_COMPLETED)
        return listening.done()
    finally:
        waiting.cancel()
        listening.cancel()
        await asyncio.gather(waiting, listening, return_exceptions=True)


async def _send(
    outcomes: Sequence[JournalOutcome], peer_name: Callable[[PeerId], str], messages: MessageStream
) -> None:
    for peer, group in itertools.groupby(outcomes, key=lambda outcome: outcome.peer):
        same: list[tuple[int, int, bytes]] = []
        for outcome in group:
            at = 0
            while len(outcome.payload) - at > PART_BYTES:
                await messages.send(TaskResultPart(outcome.task, outcome.payload[at : at + PART_BYTES]))
                at += PART_BYTES
            same.append((outcome.task, outcome.status, outcome.payload[at:] if at else outcome.payload))
        await messages.send(TaskOutcomes(peer, peer_name(peer), same))
