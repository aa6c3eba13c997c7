"""Keeps account of the jobs submitted on this machine, and makes them."""

from __future__ import annotations

import logging
import random
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from croft.compute.circles import Circles, is_member_name
from croft.compute.commands import CommandJob, Placed
from croft.compute.delegates import Delegations
from croft.compute.durable import DurableJobs
from croft.compute.environments import Environments
from croft.compute.job_sessions import StoredInput
from croft.compute.jobs import OnOutcomes, TaskJob
from croft.compute.journal import Entry, Journal
from croft.compute.journal_exchange import by_peer
from croft.compute.journal_messages import FoundJob, JobSpec
from croft.compute.kept_results import Values
from croft.compute.lenders import Candidate, Wish
from croft.compute.verification import Standing, Verification, parse_check
from croft.control import schema
from croft.control.work import command_spec, wish
from croft.control.work_messages import OpenCommandJob, OpenTaskJob
from croft.errors import CroftError, NotFound, Usage
from croft.model.amounts import CPU
from croft.model.ids import JobId, PeerId, TwinId
from croft.node.delegation import JobsElsewhere, Outcomes, OverlayHolders
from croft.node.offering import OfferedHere

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.service import Overlay
    from croft.ports import Clock, Database, Entropy, Stream

log = logging.getLogger(__name__)

JOBS_SHOWN_MAX = 100
JOBS_KEPT_MAX = 1_000
LABEL_LENGTH_MAX = 200
JOB_ID_BYTES = 8

OfferedByPeer = Callable[[], Mapping[PeerId, OfferedHere]]


class OverlayPeers:
    """The overlay, as compute wants to see it; fulfils `croft.compute.jobs.Peers`."""

    def __init__(self, overlay: Overlay, offered_here: OfferedByPeer) -> None:
        self._overlay = overlay
        self._offered_here = offered_here

    def candidates(self) -> list[Candidate]:
        """Members that are alive, and this peer itself."""
        own = self._overlay.own.peer
        candidates: list[Candidate] = []
        offered, nothing = self._offered_here(), OfferedHere()
        for member in self._overlay.members():
            link = self._overlay.links.get(member.peer)
            is_self = member.peer == own
            if not self._overlay.is_alive(member.peer):
                continue
            load = self._overlay.seen(member.peer).load
            here = offered.get(member.peer, nothing)
            candidates.append(
                Candidate(
                    peer=member.peer,
                    name=member.name,
                    is_self=is_self,
                    slots=max(member.slots, here.amounts[CPU]),
                    slots_busy=load.slots_busy if load else 0,
                    round_trip_s=0.0 if is_self else link.round_trip_s if link else None,
                    python=member.python,
                    grade=member.grade,
                    labels=frozenset(member.labels),
                    devices=here.devices,
                    reason=here.reason,
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

    def __init__(
        self,
        overlay: Overlay,
        offered_here: OfferedByPeer,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        check: Callable[[TwinId], None],
        delegates_wanted: int,
        circles: Circles,
        environments: Environments,
        values: Values,
    ) -> None:
        self._values = values
        self._circles = circles
        self._overlay = overlay
        self._peers = OverlayPeers(overlay, offered_here)
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._running: dict[str, _Running] = {}
        own = overlay.own
        self._standing = Standing()
        self.durable = DurableJobs(Journal(database, clock), self._durable_tasks, entropy, own.twin, own.peer)
        self.delegations = Delegations(self.durable, OverlayHolders(overlay), own.peer, own.twin, clock, check)
        self._elsewhere = JobsElsewhere(overlay, self.durable, self.delegations)
        self._delegates_wanted = delegates_wanted
        self._environments = environments
        self.delegations.before_holding = self._collect

    def _durable_tasks(self, job: JobId, spec: JobSpec, on_outcomes: OnOutcomes) -> TaskJob:
        only, never = frozenset(map(PeerId, spec.only)), frozenset(map(PeerId, spec.never))
        labels = frozenset(spec.labels)
        wanted = Wish(spec.python, only, never, tuple(spec.needs), labels, spec.cpus, spec.priority)
        return TaskJob(
            job,
            self._peers,
            wanted,
            on_outcomes,
            memory_bytes=spec.memory_bytes,
            task_s_max=spec.task_s_max,
            retries=spec.retries,
            deterministic=spec.deterministic,
            is_patient=True,
            verdicts=self._verification(spec.verify),
            standing=self._standing,
            environment=spec.environment,
        )

    async def _collect(self, spec: JobSpec, holder: PeerId) -> None:
        """A delegate needs what lenders will ask it for."""
        if spec.environment is not None:
            await self._environments.collect(spec.environment, holder)

    def check_environment(self, opening: OpenTaskJob | OpenCommandJob) -> None:
        """Raises Failed if the environment that a program asks for is not here."""
        environment = opening.environment if isinstance(opening, OpenTaskJob) else opening.packages
        if environment is not None:
            self._environments.check_here(environment)

    def task_job(self, opening: OpenTaskJob, on_outcomes: OnOutcomes, stored: Sequence[StoredInput] = ()) -> TaskJob:
        """A new bag of tasks. Raises Failed if its environment is not here."""
        self.check_environment(opening)
        job = TaskJob(
            self._new_id(),
            self._peers,
            wish(opening, stored),
            on_outcomes,
            memory_bytes=opening.memory_bytes,
            task_s_max=opening.task_s_max,
            verdicts=self._verification(opening.verify),
            standing=self._standing,
            retries=opening.retries,
            deterministic=opening.deterministic,
            environment=opening.environment,
            values=self._values,
        )
        label = opening.label[:LABEL_LENGTH_MAX]
        self._running[job.id] = _Running("tasks", label, self._clock.now(), job)
        return job

    def _verification(self, text: str) -> Verification | None:
        check = parse_check(text)
        if not check.is_any:
            return None
        return Verification(check, self._standing, random.Random(self._entropy.token(JOB_ID_BYTES)))

    def command_job(self, opening: OpenCommandJob, stored: Sequence[StoredInput] = ()) -> tuple[str, CommandJob]:
        """A new command.

        Raises NotFound for a circle that is not open, Usage for a member of no name, Failed without its packages.
        """
        self.check_environment(opening)
        placed: Placed | None = None
        if opening.circle:
            self._circles.home(opening.circle)
            if not is_member_name(opening.member):
                raise Usage("a member of a circle needs a name", remedy="One line, up to 64 characters.")
            placed = partial(self._circles.placed, opening.circle, opening.member)
        number = self._new_id()
        label = (opening.label or shlex.join(opening.argv))[:LABEL_LENGTH_MAX]
        self._running[number] = _Running("command", label, self._clock.now(), None)
        return number, CommandJob(number, self._peers, wish(opening, stored), command_spec(opening, stored), placed)

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

    async def delegate(self, opening: OpenTaskJob, job: JobId) -> None:
        """Gives copies of a job to the delegates that its program wants, or the settings. Raises Refused."""
        wanted = self._delegates_wanted if opening.delegates_wanted is None else opening.delegates_wanted
        if opening.delegates or wanted:
            await self.delegations.delegate(job, [PeerId(peer) for peer in opening.delegates], wanted)

    async def outcomes(self, name: str, *, is_in_order: bool, after: int) -> AsyncIterator[tuple[PeerId, Outcomes]]:
        """What came of a durable job's tasks, here or at another holder, until it is over."""
        try:
            entry = await self.durable.find(name)
        except NotFound:
            async for peer, outcomes in self._elsewhere.outcomes(name, is_in_order=is_in_order, after=after):
                yield peer, outcomes
            return
        async for recorded in self.durable.outcomes(entry.id, is_in_order=is_in_order, after=after):
            for peer, same in by_peer(recorded):
                yield peer, same

    async def listed(self) -> list[schema.Job]:
        """Jobs that are not over, then the others, newest first."""
        own = self._overlay.own.twin
        entries = [entry for entry in await self.durable.journal.entries() if entry.twin == own]
        jobs = [self._shown_durable(entry, {}) for entry in entries]
        jobs += [self._shown(job, entry, "running", None) for job, entry in self._running.items()]
        jobs += await self._ended()
        return sorted(jobs, key=lambda job: (job.ended_at is not None, -job.created_at))

    async def shown(self, name: str) -> schema.Job:
        """One job by its id, the beginning of its id, or the label of a durable one.

        One of this person that is not kept here is looked for at others. Raises NotFound.
        """
        try:
            entry = await self.durable.find(name)
        except NotFound:
            for job in await self.listed() if name else ():
                if job.job.startswith(name):
                    return job
            return self._shown_found((await self._elsewhere.find(name))[1])
        return self._shown_durable(entry, await self.durable.journal.done_by(entry.number))

    async def cancel(self, name: str) -> schema.Job:
        """Ends a durable job, wherever it is held; what is done stays. Raises NotFound."""
        try:
            entry = await self.durable.find(name)
        except NotFound:
            return self._shown_found(await self._elsewhere.end(name, forget=False))
        await self.durable.cancel(entry)
        return await self.shown(entry.id)

    async def forget(self, name: str) -> schema.Job:
        """Ends a durable job if it runs, and drops its results, wherever it is held. Raises NotFound, Refused."""
        try:
            shown = await self.shown((await self.durable.find(name)).id)
        except NotFound:
            return self._shown_found(await self._elsewhere.end(name, forget=True))
        await self.durable.forget(await self.durable.find(name))
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

    def _shown_durable(self, entry: Entry, done_by: Mapping[PeerId, int]) -> schema.Job:
        tasks = self.durable.tasks_of(entry.number)
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
            submitter=self.peer_name(entry.submitter),
            carrier=self.peer_name(entry.carrier),
            delegates=list(map(self.peer_name, entry.delegates)),
        )

    def _shown_found(self, found: FoundJob) -> schema.Job:
        return schema.Job(
            job=found.job,
            kind="tasks",
            label=found.label,
            state=found.state,
            created_at=found.created_at,
            ended_at=found.ended_at,
            tasks=found.tasks,
            done=found.done,
            failed=found.failed,
            done_by={self.peer_name(PeerId(peer)): count for peer, count in found.done_by.items()},
            is_durable=True,
            submitter=self.peer_name(PeerId(found.submitter)),
            carrier=self.peer_name(PeerId(found.carrier)),
            delegates=[self.peer_name(PeerId(peer)) for peer in found.delegates],
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
