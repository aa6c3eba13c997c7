"""Keeps account of the jobs submitted on this machine, and makes them."""

from __future__ import annotations

import logging
import random
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from croft.compute.commands import CommandJob
from croft.compute.durable import DurableJobs
from croft.compute.jobs import OnOutcomes, TaskJob
from croft.compute.journal import Entry, Journal
from croft.compute.journal_messages import JobSpec
from croft.compute.lenders import Candidate, Wish
from croft.compute.verification import Standing, Verification, parse_check
from croft.control import schema
from croft.control.work import command_spec, wish
from croft.control.work_messages import OpenCommandJob, OpenTaskJob
from croft.errors import CroftError, NotFound
from croft.model.ids import JobId, PeerId

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.service import Overlay
    from croft.ports import Clock, Database, Entropy, Stream

log = logging.getLogger(__name__)

JOBS_SHOWN_MAX = 100
JOBS_KEPT_MAX = 1_000
LABEL_LENGTH_MAX = 200
JOB_ID_BYTES = 8


class OverlayPeers:
    """The overlay, as compute wants to see it; fulfils `croft.compute.jobs.Peers`."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def candidates(self) -> list[Candidate]:
        """Members that are alive, and this peer itself."""
        own = self._overlay.own.peer
        candidates: list[Candidate] = []
        for member in self._overlay.members():
            link = self._overlay.links.get(member.peer)
            is_self = member.peer == own
            if not self._overlay.is_alive(member.peer):
                continue
            load = self._overlay.seen(member.peer).load
            candidates.append(
                Candidate(
                    peer=member.peer,
                    name=member.name,
                    is_self=is_self,
                    slots=member.slots,
                    slots_busy=load.slots_busy if load else 0,
                    round_trip_s=0.0 if is_self else link.round_trip_s if link else None,
                    python=member.python,
                    grade=member.grade,
                    owner=member.peer if member.twin == self._overlay.own.twin else member.twin,
                )
            )
        return candidates

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable."""
        return await self._overlay.open_stream(peer, purpose)


@dataclass(slots=True)
class _Running:
    kind: str
    label: str
    created_at: float
    tasks: TaskJob | None


class JobBook:
    """Every job of this machine's programs; fulfils `croft.control.work.JobFactory`."""

    def __init__(self, overlay: Overlay, database: Database, clock: Clock, entropy: Entropy) -> None:
        self._overlay = overlay
        self._peers = OverlayPeers(overlay)
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._running: dict[str, _Running] = {}
        own = overlay.own
        self._standing = Standing()
        self.durable = DurableJobs(Journal(database, clock), self._durable_tasks, entropy, own.twin, own.peer)

    def _durable_tasks(self, job: JobId, spec: JobSpec, on_outcomes: OnOutcomes) -> TaskJob:
        wanted = Wish(spec.python, frozenset(map(PeerId, spec.only)), frozenset(map(PeerId, spec.never)))
        return TaskJob(
            job,
            self._peers,
            wanted,
            on_outcomes,
            memory_bytes=spec.memory_bytes,
            task_s_max=spec.task_s_max,
            is_patient=True,
            verdicts=self._verification(spec.verify),
            standing=self._standing,
        )

    def task_job(self, opening: OpenTaskJob, on_outcomes: OnOutcomes) -> TaskJob:
        """A new bag of tasks."""
        job = TaskJob(
            self._new_id(),
            self._peers,
            wish(opening),
            on_outcomes,
            memory_bytes=opening.memory_bytes,
            task_s_max=opening.task_s_max,
            verdicts=self._verification(opening.verify),
            standing=self._standing,
        )
        label = opening.label[:LABEL_LENGTH_MAX]
        self._running[job.id] = _Running("tasks", label, self._clock.now(), job)
        return job

    def _verification(self, text: str) -> Verification | None:
        check = parse_check(text)
        if not check.is_any:
            return None
        return Verification(check, self._standing, random.Random(self._entropy.token(JOB_ID_BYTES)))

    def command_job(self, opening: OpenCommandJob) -> tuple[str, CommandJob]:
        """A new command."""
        number = self._new_id()
        label = shlex.join(opening.argv)[:LABEL_LENGTH_MAX]
        self._running[number] = _Running("command", label, self._clock.now(), None)
        return number, CommandJob(number, self._peers, wish(opening), command_spec(opening))

    def peer_name(self, peer: PeerId) -> str:
        """What to call a peer."""
        return self._overlay.name_of(peer) if peer else ""

    async def ended(self, job: str, error: CroftError | None) -> None:
        """Writes the job's end into the book. A full disk does not undo what the job did."""
        running = self._running.pop(job)
        shown = self._shown(job, running, "failed" if error else "ended", self._clock.now())
        row = (
            shown.job,
            shown.kind,
            shown.label,
            shown.created_at,
            shown.ended_at,
            shown.state,
            shown.tasks,
            shown.done,
            shown.failed,
        )

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.execute(
                "DELETE FROM job WHERE id NOT IN (SELECT id FROM job ORDER BY created_at DESC LIMIT ?)",
                (JOBS_KEPT_MAX,),
            )

        try:
            await self._database.run(write)
        except CroftError as failure:
            log.warning("job %s is not written into the book: %s", job, failure.message)

    async def listed(self) -> list[schema.Job]:
        """Jobs that are not over, then the others, newest first."""
        durable = [await self._shown_durable(entry) for entry in await self.durable.journal.entries()]
        jobs = [*durable, *(self._shown(job, entry, "running", None) for job, entry in self._running.items())]
        jobs += await self._ended()
        return sorted(jobs, key=lambda job: (job.ended_at is not None, -job.created_at))

    async def shown(self, name: str) -> schema.Job:
        """One job by its id, the beginning of its id, or the label of a durable one. Raises NotFound."""
        try:
            return await self._shown_durable(await self.durable.find(name), with_peers=True)
        except NotFound:
            pass
        for job in await self.listed() if name else ():
            if job.job.startswith(name):
                return job
        raise NotFound(f"no job `{name}` is known here", remedy="See which are: `croft jobs`.")

    async def cancel(self, name: str) -> schema.Job:
        """Ends a durable job, here and on its lenders; what is done stays. Raises NotFound."""
        entry = await self.durable.find(name)
        await self.durable.cancel(entry)
        return await self.shown(entry.id)

    async def forget(self, name: str) -> schema.Job:
        """Ends a durable job if it runs, and drops its results. Raises NotFound."""
        entry = await self.durable.find(name)
        shown = await self._shown_durable(entry, with_peers=True)
        await self.durable.forget(entry)
        return shown

    async def _ended(self) -> list[schema.Job]:

        def read(db: sqlite3.Connection) -> list[tuple[str, str, str, float, float | None, str, int, int, int]]:
            query = "SELECT id, kind, label, created_at, ended_at, state, tasks, done, failed FROM job"
            return db.execute(f"{query} ORDER BY created_at DESC LIMIT ?", (JOBS_SHOWN_MAX,)).fetchall()

        return [
            schema.Job(
                job=job,
                kind=kind,
                label=label,
                created_at=created_at,
                ended_at=ended_at,
                state=state,
                tasks=tasks,
                done=done,
                failed=failed,
            )
            for job, kind, label, created_at, ended_at, state, tasks, done, failed in await self._database.run(read)
        ]

    async def _shown_durable(self, entry: Entry, *, with_peers: bool = False) -> schema.Job:
        tasks = self.durable.tasks_of(entry.number)
        done_by = await self.durable.journal.done_by(entry.number) if with_peers else {}
        return schema.Job(
            job=entry.id,
            kind="tasks",
            label=entry.spec.label,
            state=entry.state,
            created_at=entry.created_at,
            ended_at=entry.ended_at,
            tasks=entry.tasks,
            done=entry.done,
            failed=entry.failed,
            done_by={self.peer_name(peer): count for peer, count in done_by.items()},
            is_durable=True,
            reason=tasks.complaint if tasks is not None else "",
        )

    def _shown(self, job: str, entry: _Running, state: str, ended_at: float | None) -> schema.Job:
        tasks = entry.tasks
        is_done = state == "ended"
        return schema.Job(
            job=job,
            kind=entry.kind,
            label=entry.label,
            state=state,
            created_at=entry.created_at,
            ended_at=ended_at,
            tasks=tasks.tasks_added if tasks else 1,
            done=tasks.tasks_done if tasks else int(is_done),
            failed=tasks.tasks_failed if tasks else int(state == "failed"),
            done_by={self.peer_name(peer): count for peer, count in tasks.done_by.items()} if tasks else {},
        )

    def _new_id(self) -> JobId:
        return JobId(self._entropy.token(JOB_ID_BYTES).hex())
