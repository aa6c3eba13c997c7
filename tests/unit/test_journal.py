"""The journal of durable jobs: on disk before it counts, each outcome once."""

from __future__ import annotations

import asyncio

import pytest

from croft.compute.journal import INLINE_BYTES_MAX, READ_ROWS_MAX, UNWRITTEN_BYTES_MAX, Journal
from croft.compute.worker_messages import Status
from croft.errors import Failed
from croft.model.ids import PeerId
from croft.sim.machine import SimulatedDisk
from support.journals import filled, run, serving

ANNA, BO = PeerId("anna"), PeerId("bo")


def good(*tasks: int, payload: bytes = b"v") -> list[tuple[int, int, bytes]]:
    return [(task, Status.OK, payload) for task in tasks]


def test_the_first_outcome_of_a_task_stays_and_counts_once() -> None:
    async def story() -> None:
        async with serving(SimulatedDisk()) as journal:
            job = await filled(journal, 3)
            heard: list[int] = []
            journal.record(job.number, ANNA, good(0, 1, payload=b"first"), heard.append)
            journal.record(job.number, BO, good(1, 2, payload=b"second"), heard.append)
            await journal.settle()

            outcomes = await journal.outcomes_after(job.number, 0, in_order=True)
            entry = await journal.find(job.id)

        assert [(o.task, o.peer, o.payload) for o in outcomes] == [
            (0, ANNA, b"first"),
            (1, ANNA, b"first"),
            (2, BO, b"second"),
        ]
        assert heard == [2, 1]
        assert entry is not None and (entry.done, entry.failed) == (3, 0)

    run(story)


def test_what_was_not_settled_when_the_peer_died_is_as_if_it_had_never_been() -> None:
    async def story() -> None:
        disk = SimulatedDisk()
        async with serving(disk) as journal:
            job = await filled(journal, 10)
            journal.record(job.number, ANNA, good(0, 1))
            await journal.settle()
            journal.record(job.number, ANNA, good(2, 3))
        async with serving(disk) as journal:
            rest = await journal.tasks_after(job.number, -1)
            entry = await journal.find(job.id)

        assert [task.task for task in rest] == list(range(2, 10))
        assert entry is not None and entry.done == 2

    run(story)


def test_a_full_disk_holds_outcomes_up_and_loses_none() -> None:
    async def story() -> None:
        disk = SimulatedDisk()
        async with serving(disk) as journal:
            job = await filled(journal, 2)
            disk.failure = Failed("the disk is full")
            journal.record(job.number, ANNA, good(0))
            await asyncio.sleep(5)
            disk.failure = None
            await journal.settle()

            assert [o.task for o in await journal.outcomes_after(job.number, 0)] == [0]

    run(story)


def test_large_arguments_are_kept_once_whatever_the_number_of_tasks() -> None:
    async def story() -> None:
        disk = SimulatedDisk()
        async with serving(disk) as journal:
            job = await filled(journal, 50, size=INLINE_BYTES_MAX + 1)
            kept = disk.connection.execute("SELECT count(*), sum(length(value)) FROM journal_value").fetchone()
            tasks = await journal.tasks_after(job.number, -1)

        assert kept == (1, INLINE_BYTES_MAX + 1)
        assert [len(task.arguments) for task in tasks] == [INLINE_BYTES_MAX + 1] * 50

    run(story)


def test_outcomes_in_order_stop_at_the_first_gap() -> None:
    async def story() -> None:
        async with serving(SimulatedDisk()) as journal:
            job = await filled(journal, 5)
            journal.record(job.number, ANNA, good(1, 0, 3))
            await journal.settle()

            in_order = await journal.outcomes_after(job.number, 0, in_order=True)
            recorded = await journal.outcomes_after(job.number, 0)

        assert [o.task for o in in_order] == [0, 1]
        assert [o.task for o in recorded] == [1, 0, 3]

    run(story)


def test_an_ended_job_takes_nothing_more_and_keeps_only_what_came_of_it() -> None:
    async def story() -> None:
        disk = SimulatedDisk()
        async with serving(disk) as journal:
            job = await filled(journal, 2)
            journal.record(job.number, ANNA, good(0, 1))
            journal.end(job.number, "ended")
            journal.add_tasks(job.number, b"f", 2, [b"late"])
            journal.record(job.number, ANNA, good(2))
            journal.end(job.number, "cancelled")
            await journal.settle()

            entry = await journal.find(job.id)
            left = [
                disk.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("journal_task", "journal_function", "journal_outcome")
            ]
            journal.forget(job.number)
            journal.record(job.number, ANNA, good(0))
            await journal.settle()
            after = disk.connection.execute("SELECT count(*) FROM journal_outcome").fetchone()[0]

        assert entry is not None and (entry.state, entry.tasks, entry.done) == ("ended", 2, 2)
        assert left == [0, 0, 2]
        assert after == 0

    run(story)


def test_an_older_epoch_does_not_change_who_carries_a_job() -> None:
    async def story() -> None:
        async with serving(SimulatedDisk()) as journal:
            job = await filled(journal, 1)
            journal.set_carrier(job.number, 3, ANNA)
            journal.set_carrier(job.number, 2, BO)
            await journal.settle()
            entry = await journal.find(job.id)

        assert entry is not None and (entry.epoch, entry.carrier) == (3, ANNA)

    run(story)


def test_a_writer_that_is_faster_than_the_disk_waits_for_room() -> None:
    async def story() -> None:
        async with serving(SimulatedDisk()) as journal:
            job = await filled(journal, 1)
            for first in range(1, 5):
                journal.add_tasks(job.number, b"f", first, [bytes(UNWRITTEN_BYTES_MAX // 3)])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await journal.room()
            await journal.room()
            await journal.settle()
            entry = await journal.find(job.id)

        assert entry is not None and entry.tasks == 5

    run(story)


def test_a_long_job_is_read_in_parts() -> None:
    async def all_tasks(journal: Journal, job: int) -> list[int]:
        numbers: list[int] = []
        while part := await journal.tasks_after(job, numbers[-1] if numbers else -1):
            assert len(part) <= READ_ROWS_MAX
            numbers += [task.task for task in part]
        return numbers

    async def story() -> None:
        async with serving(SimulatedDisk()) as journal:
            job = await filled(journal, 2 * READ_ROWS_MAX + 7)

            assert await all_tasks(journal, job.number) == list(range(2 * READ_ROWS_MAX + 7))

    run(story)
