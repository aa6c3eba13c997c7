"""Runs one bag of Python tasks over the peers: the shell of `job` and `lenders`.

Each lender has a session of its own, a `tasks/1` stream. Outcomes go to the job's owner as they are recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, assert_never

from croft.compute import job as core
from croft.compute.lenders import Candidate, Lenders, Wish, is_decline
from croft.compute.messages import TASKS_PURPOSE, Declined, Opened, OpenTasks, Reply
from croft.compute.worker_messages import (
    CancelChunk,
    ChunkDone,
    ChunkResults,
    FromWorker,
    FunctionFailed,
    LoadFunction,
    RunChunk,
    Status,
)
from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Refused, by_code
from croft.model.ids import JobId, PeerId
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Stream

log = logging.getLogger(__name__)

FromSession = FromWorker | Declined

LOOK_AGAIN_S = 0.25
OPENING_TIMEOUT_S = 30.0


class Peers(Protocol):
    """What compute needs to know of the overlay."""

    def candidates(self) -> list[Candidate]:
        """Reachable peers that lend, this one among them."""
        ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable."""
        ...


OnOutcomes = Callable[[PeerId, Sequence[core.Outcome]], None]


class TaskJob:
    """One bag of tasks. `run` works until cancelled; `on_outcomes` hears of every recorded outcome, once.

    One that `is_patient` waits for lenders as long as it takes.
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
        is_patient: bool = False,
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
        self._is_patient = is_patient
        self._lenders = Lenders(wish)
        self._bag = core.Bag()
        self._functions: dict[bytes, LoadFunction] = {}
        self._arguments: dict[int, bytes] = {}
        self._sessions: dict[PeerId, _Session | None] = {}
        self._wanted = asyncio.Event()
        self._nobody_since: float | None = None
        self._names: dict[PeerId, str] = {}

    @property
    def open_tasks(self) -> int:
        """Tasks without a recorded outcome."""
        return self._bag.open_tasks

    @property
    def complaint(self) -> str:
        """Why nobody works on it, if nobody does."""
        if self._bag.lenders or self._bag.open_tasks == 0:
            return ""
        return "; ".join(self._lenders.reasons()) or "no peer that fits is here"

    def add_function(self, function: LoadFunction) -> None:
        """Makes a function known; before its first task."""
        self._functions[function.digest] = function

    def add(self, function: bytes, tasks: Sequence[int], arguments: Sequence[bytes]) -> None:
        """Adds tasks; numbers are unique in the job."""
        self.tasks_added += len(tasks)
        self._arguments.update(zip(tasks, arguments, strict=True))
        self._perform(self._bag.handle(core.TasksAdded(function, tasks, [len(a) for a in arguments])))
        self._wanted.set()

    def cancel(self, tasks: Sequence[int]) -> None:
        """Forgets tasks that nobody waits for; what runs of them is killed if nothing else is in its chunk."""
        self._perform(self._bag.handle(core.TasksCancelled(tasks)))
        for task in tasks:
            self._arguments.pop(task, None)

    async def run(self) -> None:
        """Keeps enough lenders at work. Raises Refused after `Lenders.patience_s` without one, unless patient."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            # The loop ends only while no session is open, so the group has nothing left to wait for.
            while not self._is_hopeless(loop.time()):
                await self._wanted.wait()
                if self._bag.open_tasks == 0:
                    self._wanted.clear()
                    continue
                for candidate in self._to_ask(loop.time()):
                    self._sessions[candidate.peer] = None
                    tasks.create_task(self._work_with(candidate), name=f"job.{self.id}.{candidate.name}")
                await asyncio.sleep(LOOK_AGAIN_S)
                self._perform(self._bag.handle(core.TimePassed(loop.time())))
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
        chosen: list[Candidate] = []
        for candidate in self._lenders.ranked(self._peers.candidates(), self._sessions, now):
            if wanted <= 0:
                break
            chosen.append(candidate)
            wanted -= candidate.slots
        return chosen

    def _is_hopeless(self, now: float) -> bool:
        if self._bag.lenders or self._bag.open_tasks == 0:
            self._nobody_since = None
            return False
        if self._nobody_since is None:
            self._nobody_since = now
        # Whoever is still being asked may yet say yes.
        return self._is_out_of_patience(now) and not self._sessions

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
                self._sessions[peer] = _Session(messages, opened.slots, set(opened.functions))
                self._perform(self._bag.handle(core.LenderReady(peer, opened.slots)))
                while (payload := await messages.receive()) is not None:
                    self._take(peer, payload)
                self._lenders.refused(candidate, "it closed the session", loop.time())
        except CroftError as error:
            self._lenders.refused(candidate, error.message, loop.time(), is_declined=is_decline(error))
        except ConnectionLost as lost:
            self._lenders.refused(candidate, f"lost: {lost}", loop.time())
        except PeerMisbehaved as fault:
            log.warning("peer %s (%s) broke the protocol: %s", candidate.name, peer[:10], fault)
            self._lenders.refused(candidate, f"broke the protocol: {fault}", loop.time())
        finally:
            if stream is not None:
                stream.abort()
            del self._sessions[peer]
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]  # this is a task
                self._perform(self._bag.handle(core.LenderLost(peer)))

    async def _open(self, messages: MessageStream) -> Opened:
        messages.post(OpenTasks(self._wish.python, self._memory_bytes, self.id, needs=self._wish.needs))
        try:
            async with asyncio.timeout(OPENING_TIMEOUT_S):
                payload = await messages.receive()
        except TimeoutError:
            raise ConnectionLost("no answer to the opening") from None
        if payload is None:
            raise ConnectionLost("closed during the opening")
        reply: Reply = decode_union(payload, Reply, step="opening of tasks")
        match reply:
            case Opened():
                return reply
            case Declined(code, message, remedy):
                raise by_code(code, message, remedy)
            case _:
                assert_never(reply)

    def _take(self, peer: PeerId, payload: bytes) -> None:
        message: FromSession = decode_union(payload, FromSession, step="task results")
        match message:
            case Declined(code, text, remedy):
                raise by_code(code, text, remedy)  # the box died, and why
            case ChunkResults(chunk, outcomes):
                self._perform(self._bag.handle(core.OutcomesReceived(peer, chunk, outcomes)))
            case ChunkDone(chunk, elapsed_s):
                self._perform(self._bag.handle(core.ChunkEnded(peer, chunk, elapsed_s)))
            case FunctionFailed(digest, reason):
                payload = f"the function cannot be loaded on {self._names[peer]}: {reason}".encode()
                self._perform(self._bag.handle(core.FunctionBroken(peer, digest, Status.DIED, payload)))
            case _:
                raise PeerMisbehaved(f"{type(message).__name__} on a stream of tasks", step="task results")

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
            session.messages.post(RunChunk(chunk, function, arguments, self._task_s_max))

    def _record(self, peer: PeerId, outcomes: Sequence[core.Outcome]) -> None:
        for task, status, _ in outcomes:
            self._arguments.pop(task, None)
            if status != Status.OK:
                self.tasks_failed += 1
        self.tasks_done += len(outcomes)
        self.done_by[peer] = self.done_by.get(peer, 0) + len(outcomes)
        self._on_outcomes(peer, outcomes)


class _Session:
    """A lender's open stream."""

    __slots__ = ("functions", "messages", "slots")

    def __init__(self, messages: MessageStream, slots: int, functions: set[bytes]) -> None:
        self.messages = messages
        self.slots = slots
        self.functions = functions
