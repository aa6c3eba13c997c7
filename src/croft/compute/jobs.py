"""Runs one bag of Python tasks over the peers: the shell of `job` and `lenders`.

Each lender has a session of its own, a `tasks/1` stream. Outcomes go to the job's owner as they are recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, assert_never

from croft.compute import job as core
from croft.compute import verification
from croft.compute.answers import Answer, CopiedCall, answer_digest
from croft.compute.environment import Environment
from croft.compute.environments import SOURCES_MAX
from croft.compute.job_sessions import Buffer, Session, StoredInput, await_opened, take_leave
from croft.compute.kept_results import ResultsElsewhere, Values, check_statuses
from croft.compute.lenders import Candidate, Lenders, Wish, is_decline
from croft.compute.messages import (
    TASKS_PURPOSE,
    Declined,
    Opened,
    OpenTasks,
)
from croft.compute.worker_messages import (
    PART_BYTES,
    RESULT_BYTES_MAX,
    CancelChunk,
    ChunkDone,
    ChunkResults,
    FromWorker,
    FunctionFailed,
    LoadFunction,
    ResultPart,
    RunChunk,
    Status,
)
from croft.errors import ConnectionLost, CroftError, Full, PeerMisbehaved, Refused, by_code
from croft.model.ids import JobId, PeerId
from croft.model.kept import Held
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Stream

log = logging.getLogger(__name__)

FromSession = FromWorker | Declined

LOOK_AGAIN_S = 0.25


class Peers(Protocol):
    """What compute needs to know of the overlay."""

    def candidates(self) -> list[Candidate]:
        """Reachable peers that lend, this one among them."""
        ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable."""
        ...


OnOutcomes = Callable[[PeerId, Sequence[core.Outcome]], None]
OnCaught = Callable[[PeerId, str, Sequence[int]], None]


class TaskJob:
    """One bag of tasks. `run` works until cancelled; `on_outcomes` hears of every recorded outcome, once.

    One that `is_patient` waits for lenders as long as it takes. With `values`, results may stay at their lenders.
    """

    def __init__(
        self,
        job: JobId,
        peers: Peers,
        wish: Wish,
        on_outcomes: OnOutcomes,
        *,
        memory_bytes: int,
        task_s_max: float,
        retries: int = 0,
        deterministic: bool | None = None,
        is_patient: bool = False,
        verdicts: verification.Verification | None = None,
        standing: verification.Standing | None = None,
        environment: Environment | None = None,
        values: Values | None = None,
    ) -> None:
        self.id = job
        self.done_by: dict[PeerId, int] = {}
        self.tasks_added = 0
        self.tasks_done = 0
        self.tasks_failed = 0
        self._peers = peers
        self._wish = wish
        self._on_outcomes = on_outcomes
        self._memory_bytes = memory_bytes
        self._task_s_max = task_s_max
        self._environment = environment
        self._is_patient = is_patient
        self._verification = verdicts
        self._calls: dict[int, CopiedCall] = {}
        """What undecided tasks are, where results are verified."""
        self._answers: dict[int, Answer] = {}
        """What came of copies of them."""
        self.liars: dict[PeerId, Sequence[int]] = {}
        """Who was caught, and which tasks' results from it had been taken before, unchecked."""
        self.on_caught: OnCaught = lambda *_: None
        self._tasks: asyncio.TaskGroup | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._lenders = Lenders(wish, job)
        for peer, reason in (standing or verification.Standing()).caught.items():
            self._lenders.ban(peer, peer[:10], reason)
        self._bag = core.Bag(retries, deterministic)
        self._functions: dict[bytes, LoadFunction] = {}
        self._arguments: dict[int, bytes] = {}
        self._buffers: dict[bytes, Buffer] = {}
        self._needs: dict[int, list[bytes]] = {}
        """Tasks that refer to buffers, and to which."""
        self._sessions: dict[PeerId, Session | None] = {}
        self.elsewhere = ResultsElsewhere(self, values, self._buffers, self._needs, self._sessions)
        self._parts: dict[tuple[PeerId, int], list[bytes]] = {}
        """What has come of large results, by who computes them and the task."""
        self._wanted = asyncio.Event()
        self._nobody_since: float | None = None
        self._names: dict[PeerId, str] = {}

    @property
    def open_tasks(self) -> int:
        """Tasks without a recorded outcome."""
        return self._bag.open_tasks if self._verification is None else self._verification.open_tasks

    @property
    def complaint(self) -> str:
        """Why nobody works on it, if nobody does."""
        if self._bag.lenders or self._bag.open_tasks == 0:
            return ""
        return "; ".join(self._lenders.reasons()) or "no peer that fits is here"

    def add_function(self, function: LoadFunction) -> None:
        """Makes a function known; before its first task."""
        self._functions[function.digest] = function

    def add_buffer_part(self, digest: bytes, size: int, offset: int, payload: bytes) -> None:
        """Takes the next part of a buffer, in the message `payload` that lenders get; before its first task.

        Raises PeerMisbehaved if it does not continue the buffer.
        """
        buffer = self._buffers.setdefault(digest, Buffer(size))
        if offset != buffer.filled or size != buffer.size or offset > size:
            raise PeerMisbehaved("a part of a buffer that does not continue it", step="local work")
        buffer.parts.append(payload)
        buffer.filled = min(size, offset + PART_BYTES)

    def add_kept_buffer(self, digest: bytes, held: Held) -> None:
        """A buffer that a peer keeps, since a task has made it; lenders fetch it there. Before its first task."""
        buffer = self._buffers.setdefault(digest, Buffer(held.size))
        if buffer.size != held.size:
            raise PeerMisbehaved("a buffer of another size than before", step="local work")
        buffer.kept = held

    def add_stored_buffer(self, digest: bytes, stored: StoredInput) -> None:
        """A buffer that is a stored file: lenders that hold it read it there. Before its first task."""
        self._buffers.setdefault(digest, Buffer(stored.size)).stored = stored

    def drop_buffer(self, digest: bytes) -> None:
        """No task that is still to come uses this buffer."""
        self.elsewhere.drop_copy(digest)
        self._buffers.pop(digest, None)
        for session in self._sessions.values():
            if session is not None:
                session.drop([digest])

    def add(
        self,
        function: bytes,
        tasks: Sequence[int],
        arguments: Sequence[bytes],
        buffers: Sequence[list[bytes]] = (),
        *,
        stays: bool = False,
    ) -> list[int]:
        """Adds tasks; numbers are unique in the job. Returns how many bytes each task's arguments add here.

        `buffers` are the digests that each task's pickle refers to, or nothing if none does. `stays`: what they return
        may stay at its lender. Raises PeerMisbehaved for a buffer that is not here.
        """
        self.tasks_added += len(tasks)
        sizes = [len(argument) for argument in arguments]
        needs: dict[int, list[bytes]] = {}
        for index, digests in enumerate(buffers):
            if not all(digest in self._buffers for digest in digests):
                raise PeerMisbehaved("a task that refers to what was not sent", step="local work")
            if digests:
                needs[tasks[index]] = digests
                # Whoever is first to use a buffer pays for it: a lender gets it once.
                here = [digest for digest in set(digests) if not self._buffers[digest].is_elsewhere]
                sizes[index] += sum(self._buffers[digest].first_use() for digest in here)
        if self._verification is None:
            self._arguments.update(zip(tasks, arguments, strict=True))
            self._needs.update(needs)
            if stays:
                self.elsewhere.may_stay(function, tasks)
            self._deal_out(function, tasks, sizes)
        else:
            for task, argument, size in zip(tasks, arguments, sizes, strict=True):
                self._calls[task] = CopiedCall(function, argument, needs.get(task, []), size)
            self._have_copied(self._verification.add(tasks))
        self._wanted.set()
        return sizes

    def _deal_out(self, function: bytes, tasks: Sequence[int], sizes: Sequence[int]) -> None:
        near: list[frozenset[PeerId]] = []
        if self._needs:
            near = [self.elsewhere.near(function, task) for task in tasks]
            sizes = [size + self.elsewhere.size(task) for task, size in zip(tasks, sizes, strict=True)]
            self._lenders.near.update(*near)
        self._perform(self._bag.handle(core.TasksAdded(function, tasks, sizes, near=near)))

    def take_parts(self, peer: PeerId, outcomes: Sequence[core.Outcome]) -> Iterator[tuple[int, bytes]]:
        """The parts of the results among these outcomes that stand before their payloads, which are then forgotten."""
        for task, status, _ in outcomes if self._parts else ():
            parts = self._parts.pop((peer, task), [])
            if status == Status.OK:
                yield from ((task, part) for part in parts)

    def whole(self, peer: PeerId, outcomes: Sequence[core.Outcome]) -> Sequence[core.Outcome]:
        """These outcomes with all their parts in their payloads; the parts are then forgotten."""
        parts: dict[int, list[bytes]] = {}
        for task, part in self.take_parts(peer, outcomes):
            parts.setdefault(task, []).append(part)
        if not parts:
            return outcomes
        return [(task, status, b"".join([*parts.get(task, ()), last])) for task, status, last in outcomes]

    def cancel(self, tasks: Sequence[int]) -> None:
        """Forgets tasks that nobody waits for; what runs of them is killed if nothing else is in its chunk."""
        if self._verification is not None:
            copies = self._verification.cancel(tasks)
            for task in tasks:
                self._calls.pop(task, None)
            self._perform(self._bag.handle(core.GroupsOver(tasks)))
            tasks = copies
        self._perform(self._bag.handle(core.TasksCancelled(tasks)))
        for task in tasks:
            self._forget_arguments(task)

    def _forget_arguments(self, number: int) -> None:
        self._arguments.pop(number, None)
        self._needs.pop(number, None)
        self.elsewhere.forget(number)

    # --- results that stay at their lenders: see `ResultsElsewhere` ---

    def chunks_of(self, task: int) -> list[tuple[PeerId, int]]:
        """Who has a task now, and in which chunk."""
        return self._bag.chunks_of(task)

    def deal_again(self, function: bytes, task: int) -> None:
        """Has a task run once more, of which nothing counts yet."""
        self._deal_out(function, [task], [len(self._arguments[task])])
        self._wanted.set()

    def settle(self, peer: PeerId, outcomes: Sequence[core.Outcome]) -> None:
        """These outcomes are the tasks'."""
        for task, status, _ in outcomes:
            if status != Status.KEPT:
                self._forget_arguments(task)
        self._settle(peer, outcomes)

    def tell(self, peer: PeerId, outcome: core.Outcome) -> None:
        """Something has become of a task whose outcome has counted, or will."""
        self._on_outcomes(peer, [outcome])

    def start(self, errand: Coroutine[object, object, None]) -> None:
        """Does something beside the job, as long as that runs."""
        if self._tasks is None:
            errand.close()
            return
        work = self._tasks.create_task(errand, name=f"job.{self.id}.values")
        self._working.add(work)
        work.add_done_callback(self._working.discard)

    async def run(self) -> None:
        """Keeps enough lenders at work. Raises Refused after `Lenders.patience_s` without one, unless patient."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            self._tasks, working = tasks, self._working
            while not self._is_hopeless(loop.time()):
                await self._wanted.wait()
                if self._bag.open_tasks == 0:
                    self._wanted.clear()
                    continue
                for candidate in self._to_ask(loop.time()):
                    self._sessions[candidate.peer] = None
                    work = tasks.create_task(self._work_with(candidate), name=f"job.{self.id}.{candidate.name}")
                    working.add(work)
                    work.add_done_callback(working.discard)
                await asyncio.sleep(LOOK_AGAIN_S)
                self._perform(self._bag.handle(core.TimePassed(loop.time())))
            lenders = len(self._bag.lenders)
            self._tasks = None
            for work in list(working):
                work.cancel()
        if lenders and self._verification is not None:
            raise Refused(
                f"results are to be verified, and no peer is left who could: {lenders} worked on it; "
                + "; ".join(self._lenders.reasons()),
                remedy="It takes peers of different people: see who is here with `croft peers`.",
            )
        reasons = self._lenders.reasons()
        raise Refused(
            "no peer takes this job: " + ("; ".join(reasons) if reasons else "none that fits is here"),
            remedy="See who lends what: `croft peers`.",
        )

    def _to_ask(self, now: float) -> list[Candidate]:
        """Lenders to bring in: as many as the waiting tasks could keep busy."""
        if self._is_out_of_patience(now):
            return []
        if self._bag.waiting_tasks == 0 and self._bag.lenders:
            return []
        wanted = self._bag.open_tasks - sum(s.slots for s in self._sessions.values() if s is not None)
        if self._verification is not None:
            wanted = max(1, wanted)  # what waits may be what those who are here may not do
        chosen: list[Candidate] = []
        for candidate in self._lenders.ranked(self._peers.candidates(), self._sessions, now):
            if wanted <= 0:
                break
            chosen.append(candidate)
            wanted -= candidate.slots
        return chosen

    def _is_hopeless(self, now: float) -> bool:
        is_stuck = self._verification is not None and self._bag.waiting_tasks == self._bag.open_tasks
        if (self._bag.lenders and not is_stuck) or self._bag.open_tasks == 0:
            self._nobody_since = None
            return False
        if self._nobody_since is None:
            self._nobody_since = now
        # Whoever is still being asked may yet say yes.
        return (
            self._is_out_of_patience(now) and None not in self._sessions.values() and (is_stuck or not self._sessions)
        )

    def _is_out_of_patience(self, now: float) -> bool:
        if self._nobody_since is None or self._is_patient:
            return False
        return now - self._nobody_since > self._lenders.patience_s(self._peers.candidates())

    async def _work_with(self, candidate: Candidate) -> None:
        peer = candidate.peer
        self._names[peer] = candidate.name
        loop = asyncio.get_running_loop()
        stream: Stream | None = None
        try:
            stream = await self._peers.open_stream(peer, TASKS_PURPOSE)
            async with MessageStream(stream, step="task results") as messages:
                opened = await self._open(messages)
                self._lenders.accepted(peer)
                slots = max(1, opened.slots // self._wish.cpus)
                self._sessions[peer] = Session(messages, opened, slots, stream.abort)
                ready = core.LenderReady(peer, slots, opened.buffer_bytes_max, candidate.owner)
                self._perform(self._bag.handle(ready))
                while (payload := await messages.receive()) is not None:
                    self._take(peer, payload)
                self._lenders.refused(candidate, "it closed the session", loop.time())
        except CroftError as error:
            self._lenders.refused(
                candidate,
                error.message,
                loop.time(),
                is_declined=is_decline(error),
                is_full=isinstance(error, Full),
            )
        except ConnectionLost as lost:
            self._lenders.refused(candidate, f"lost: {lost}", loop.time())
        except PeerMisbehaved as fault:
            log.warning("peer %s (%s) broke the protocol: %s", candidate.name, peer[:10], fault)
            self._lenders.refused(candidate, f"broke the protocol: {fault}", loop.time())
        except asyncio.CancelledError:
            if stream is not None:
                await take_leave(stream)
            raise
        finally:
            if stream is not None:
                stream.abort()
            del self._sessions[peer]
            self._forget_parts(lambda of, _: of == peer)
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]  # this is a task
                self._perform(self._bag.handle(core.LenderLost(peer)))

    async def _open(self, messages: MessageStream) -> Opened:
        wish = self._wish
        # Those that work already have the wheels: they need not all come from here.
        sources = [peer for peer, session in self._sessions.items() if session] if self._environment else []
        asked = OpenTasks(
            wish.python,
            self._memory_bytes,
            self.id,
            needs=wish.needs,
            cpus_per_task=wish.cpus,
            priority=wish.priority,
            environment=self._environment,
            sources=sources[:SOURCES_MAX],
        )
        return await await_opened(messages, asked)

    def _take(self, peer: PeerId, payload: bytes) -> None:
        message: FromSession = decode_union(payload, FromSession, step="task results")
        match message:
            case Declined(code, text, remedy):
                raise by_code(code, text, remedy)  # the box died, and why
            case ChunkResults(chunk, outcomes):
                check_statuses(self._sessions.get(peer), chunk, outcomes)
                self._perform(self._bag.handle(core.OutcomesReceived(peer, chunk, outcomes)))
                self.elsewhere.drop_unclaimed(peer, outcomes)
            case ResultPart(chunk, index, offset, data):
                self._take_part(peer, chunk, index, offset, data)
            case ChunkDone(chunk, elapsed_s):
                self._end_chunk(peer, chunk)
                self._perform(self._bag.handle(core.ChunkEnded(peer, chunk, elapsed_s)))
            case FunctionFailed(digest, reason):
                payload = f"the function cannot be loaded on {self._names[peer]}: {reason}".encode()
                self._perform(self._bag.handle(core.FunctionBroken(peer, digest, Status.DIED, payload)))
            case _:
                raise PeerMisbehaved(f"{type(message).__name__} on a stream of tasks", step="task results")

    def _take_part(self, peer: PeerId, chunk: int, index: int, offset: int, data: bytes) -> None:
        task = self._bag.running_task(peer, chunk, index)
        if task is None:
            return
        parts = self._parts.setdefault((peer, task), [])
        if offset == 0:
            parts.clear()
        if offset != sum(map(len, parts)) or not data or offset + len(data) > RESULT_BYTES_MAX:
            raise PeerMisbehaved("a part of a result that does not continue it", step="task results")
        parts.append(data)

    def _end_chunk(self, peer: PeerId, chunk: int) -> None:
        session = self._sessions.get(peer)
        if session is not None:
            session.forget_chunk(chunk)

    def _forget_parts(self, is_void: Callable[[PeerId, int], bool]) -> None:
        for key in [key for key in self._parts if is_void(*key)]:
            del self._parts[key]

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.SendChunk(peer, chunk, function, tasks):
                    self._send(peer, chunk, function, tasks)
                case core.RevokeChunk(peer, chunk):
                    session = self._sessions.get(peer)
                    if session is not None:
                        with contextlib.suppress(ConnectionLost):
                            session.messages.post(CancelChunk(chunk))
                case core.Record(peer, outcomes):
                    self._record(peer, outcomes)
                case core.GiveUp(task, lenders):
                    reason = f"its peer was lost {lenders} times while it ran".encode()
                    self._record(PeerId(""), [(task, Status.DIED, reason)])
                case _:
                    assert_never(effect)

    def _send(self, peer: PeerId, chunk: int, function: bytes, tasks: Sequence[int]) -> None:
        session = self._sessions[peer]
        assert session is not None, "chunks go to lenders that are ready"
        # A link that has just ended is noticed by the session's reader, which returns the chunk to the queue.
        with contextlib.suppress(ConnectionLost):
            if function not in session.functions:
                session.functions.add(function)
                session.messages.post(self._functions[function])
            arguments = [self._arguments[task] for task in tasks]
            needs = [self._needs.get(task, []) for task in tasks] if self._needs else []
            if any(needs):
                if not session.keeps_results and any(map(self.elsewhere.size, tasks)):
                    self._lenders.exclude(peer, f"{self._names[peer]}: its Croft fetches no values from others")
                    session.end()
                    return
                too_large = session.bring(chunk, needs, self._buffers)
                if too_large:
                    outcomes = [(index, int(Status.TOO_LARGE), too_large.encode()) for index in range(len(tasks))]
                    self._perform(self._bag.handle(core.OutcomesReceived(peer, chunk, outcomes)))
                    self._perform(self._bag.handle(core.ChunkEnded(peer, chunk, 0.0)))
                    return
            else:
                needs = []
            keeps = self.elsewhere.begins(peer, session, chunk, tasks)
            session.messages.post(RunChunk(chunk, function, arguments, self._task_s_max, needs, keeps))

    def _record(self, peer: PeerId, outcomes: Sequence[core.Outcome]) -> None:
        if self._verification is None and self.elsewhere.is_used:
            self.elsewhere.record(peer, outcomes)
            return
        for number, _, _ in outcomes:
            self._forget_arguments(number)
        if self._verification is None:
            self._settle(peer, outcomes)
            return
        for copy, status, payload in outcomes:
            if self._verification.task_of(copy) is None:
                continue
            parts = self._parts.pop((peer, copy), [])
            self._answers[copy] = Answer(peer, status, payload, parts)
            self._judge(self._verification.answered(peer, copy, status, answer_digest(status, payload, parts)))

    def _have_copied(self, asks: Sequence[verification.Ask]) -> None:
        """Deals out copies of tasks."""
        for function, same in itertools.groupby(asks, key=lambda ask: self._calls[ask.task].function):
            group = list(same)
            for ask in group:
                call = self._calls[ask.task]
                self._arguments[ask.copy] = call.arguments
                if call.needs:
                    self._needs[ask.copy] = call.needs
            copies, of = [ask.copy for ask in group], [ask.task for ask in group]
            sizes = [self._calls[task].size for task in of]
            self._perform(self._bag.handle(core.TasksAdded(function, copies, sizes, of)))

    def _judge(self, effects: Sequence[verification.Effect]) -> None:
        for effect in effects:
            match effect:
                case verification.Ask():
                    self._have_copied([effect])
                case verification.Accept(task, copy, void, unwanted):
                    answer = self._answers.pop(copy)
                    if answer.parts:
                        self._parts[answer.peer, task] = answer.parts
                    self._decide(task, void, unwanted, answer.peer, (task, answer.status, answer.payload))
                case verification.Dispute(task, reason, void):
                    self._decide(task, void, (), PeerId(""), (task, Status.DISPUTED, reason.encode()))
                case verification.Caught(peer, reason, unchecked):
                    self._catch(peer, reason, unchecked)
                case _:
                    assert_never(effect)

    def _decide(
        self, task: int, void: Sequence[int], unwanted: Sequence[int], peer: PeerId, outcome: core.Outcome
    ) -> None:
        del self._calls[task]
        self._perform(self._bag.handle(core.TasksCancelled(unwanted)))
        self._perform(self._bag.handle(core.GroupsOver([task])))
        for copy in (*void, *unwanted):
            self._answers.pop(copy, None)
            self._forget_arguments(copy)
        self._settle(peer, [outcome])

    def _catch(self, peer: PeerId, reason: str, unchecked: Sequence[int]) -> None:
        name = self._names.get(peer, peer[:10])
        log.warning("peer %s (%s) was caught lying about results: %s", name, peer[:10], reason)
        self._lenders.ban(peer, name, reason)
        self.liars[peer] = unchecked
        self.done_by.pop(peer, None)
        session = self._sessions.get(peer)
        if session is not None:
            session.end()
        self.on_caught(peer, reason, unchecked)

    def _settle(self, peer: PeerId, outcomes: Sequence[core.Outcome]) -> None:
        new = self.elsewhere.new(outcomes)
        self.tasks_failed += sum(status not in (Status.OK, Status.KEPT) for _, status, _ in new)
        self.tasks_done += len(new)
        self.done_by[peer] = self.done_by.get(peer, 0) + len(new)
        self._on_outcomes(peer, outcomes)
        if self._parts:
            recorded = {task for task, _, _ in outcomes}
            self._forget_parts(lambda _, task: task in recorded)
