"""What a job remembers of results that stay at their lenders, and of tasks that may have to run again.

A value that its lender keeps is lost with it; then the task that made it runs again, if its program still wants it. So
the arguments of such tasks are kept, here, as long as the program may ask for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from blake3 import blake3

from croft.compute.job_sessions import Buffer, Session, StoredInput
from croft.compute.messages import DropResults, KeptResult, SendResults
from croft.compute.worker_messages import PART_BYTES, RESULT_BYTES_MAX, BufferPart, Outcome, RemoteException, Status
from croft.compute.worker_values import ClassesMissing
from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Unreachable
from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.wire.codec import decode, encode

log = logging.getLogger(__name__)

LOSSES_MAX: Final = 20
"""How often what a task needs may be lost before the task is failed."""
OnPart = Callable[[int, bytes], Awaitable[None]]
TOKEN_BYTES_MAX: Final = 64
DIGEST_BYTES: Final = 32


class Values(Protocol):
    """How to read what peers keep; see `croft.twins.kept_values`."""

    def read(self, value: Held) -> AsyncIterator[bytes]:
        """The bytes of a value, here or at the peer that keeps it. Raises NotFound, Unreachable, Failed."""
        ...

    async def keep_own(self, parts: AsyncIterator[bytes | memoryview]) -> Held:
        """Keeps a value of the owner's own, as long as this peer runs. Raises Busy, Failed."""
        ...

    async def release(self, tokens: Sequence[bytes]) -> None:
        """Drops what is kept here. Raises Failed."""
        ...


@dataclass(frozen=True, slots=True)
class Located:
    """A value that a peer keeps, and the BLAKE3 digest of its bytes."""

    held: Held
    digest: bytes


class Job(Protocol):
    """What results that are elsewhere need of the job they are of; see `croft.compute.jobs.TaskJob`."""

    def chunks_of(self, task: int) -> list[tuple[PeerId, int]]: ...

    def deal_again(self, function: bytes, task: int) -> None: ...

    def settle(self, peer: PeerId, outcomes: Sequence[Outcome]) -> None: ...

    def tell(self, peer: PeerId, outcome: Outcome) -> None: ...

    def start(self, errand: Coroutine[object, object, None]) -> None: ...


class ResultsElsewhere:
    """Of one job. Without `values`, nothing stays elsewhere. Its `buffers`, `needs`, `sessions` are the job's own."""

    def __init__(
        self,
        job: Job,
        values: Values | None,
        buffers: Mapping[bytes, Buffer],
        needs: dict[int, list[bytes]],
        sessions: Mapping[PeerId, Session | None],
    ) -> None:
        self.on_part: OnPart = _nothing
        """Takes the parts of a value that is brought from its keeper; its outcome follows."""
        self._job = job
        self._values = values
        self._buffers = buffers
        self._needs = needs
        self._sessions = sessions
        self._functions: dict[int, bytes] = {}
        """Of each task that may run again, what it calls."""
        self._stays: set[int] = set()
        """Tasks whose results may stay at their lenders."""
        self._wanted: set[int] = set()
        """Tasks whose values the program waits for."""
        self._located: dict[int, Located] = {}
        self._losses: Counter[int] = Counter()
        self._distrusted: set[PeerId] = set()
        """Who did not give what it was to keep; from them results come at once."""
        self._counted: set[int] = set()
        """Tasks whose value has been kept before: when they have run again, they do not count again."""
        self._bringing: set[int] = set()
        self._fetching = asyncio.Lock()
        self._copies: dict[bytes, Held] = {}
        """Of stored files, for lenders that do not hold them."""

    # --- tasks on their way ------------------------------------------------------------------------------------------

    @property
    def is_used(self) -> bool:
        """Whether any task's value may be elsewhere, or needs what is."""
        return bool(self._functions)

    def may_stay(self, function: bytes, tasks: Sequence[int]) -> None:
        """What these tasks of a function return may stay at its lender."""
        if self._values is not None:
            self._functions.update(dict.fromkeys(tasks, function))
            self._stays.update(tasks)

    def near(self, function: bytes, task: int) -> frozenset[PeerId]:
        """The peers that have most bytes of what a task needs of values that others keep; none if it needs none."""
        has: Counter[PeerId] = Counter()
        for digest in set(self._needs.get(task, ())):
            buffer = self._buffers[digest]
            if not buffer.is_elsewhere:
                continue
            # It may be lost: then the task runs again.
            self._functions[task] = function
            there = {peer for peer, session in self._sessions.items() if session and digest in session.buffers}
            if buffer.stored is not None:
                there |= buffer.stored.at
            elif buffer.kept is not None:
                there.add(buffer.kept.peer)
            has.update(dict.fromkeys(there, buffer.size))
        most = max(has.values(), default=0)
        return frozenset(peer for peer, size in has.items() if size == most)

    def size(self, task: int) -> int:
        """How many bytes a task needs of values that others keep."""
        digests = set(self._needs.get(task, ()))
        return sum(self._buffers[digest].size for digest in digests if self._buffers[digest].is_elsewhere)

    def begins(self, peer: PeerId, session: Session, chunk: int, tasks: Sequence[int]) -> bool:
        """A chunk goes to a lender. Whether its results are to stay there."""
        is_trusted = session.keeps_results and peer not in self._distrusted
        stays = is_trusted and all(task in self._stays and task not in self._wanted for task in tasks)
        if stays:
            session.keeping.add(chunk)
        return stays

    def forget(self, task: int) -> None:
        """A task will not run again, and nobody asks for its value."""
        if self._functions.pop(task, None) is None:
            return
        self._stays.discard(task)
        self._wanted.discard(task)
        self._counted.discard(task)
        self._losses.pop(task, None)
        self.release([task])

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def record(self, peer: PeerId, outcomes: Sequence[Outcome]) -> None:
        """Takes outcomes of which some may stand for a value that is elsewhere, or for one that is lost."""
        told: list[Outcome] = []
        for task, status, payload in outcomes:
            if status == Status.KEPT:
                self._located[task] = _located(peer, payload)
                if task in self._wanted:
                    self._start_bringing(task)
                told.append((task, status, payload))
            elif status == Status.LOST:
                self._job.start(self._recover(peer, task, _digests(payload)))
            elif status == Status.RAISED and self.size(task) and _is_unreadable(payload):
                self._job.tell(peer, (task, Status.UNREADABLE, b""))
            else:
                told.append((task, status, payload))
        if told:
            self._job.settle(peer, told)

    def new(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Those of tasks that had none before."""
        new = [one for one in outcomes if one[0] not in self._counted] if self._counted else outcomes
        self._counted.update(task for task, status, _ in outcomes if status == Status.KEPT)
        return new

    def drop_unclaimed(self, peer: PeerId, outcomes: Sequence[Outcome]) -> None:
        """Has a lender drop what it keeps of tasks that another one has done first."""
        kept = [_located(peer, payload).held.token for _, status, payload in outcomes if status == Status.KEPT]
        if kept:
            claimed = {one.held.token for one in self._located.values() if one.held.peer == peer}
            self._drop_at(peer, [token for token in kept if token not in claimed])

    async def _recover(self, peer: PeerId, task: int, lost: set[bytes]) -> None:
        """A lender could not have what a task needs: it is sent from here, or else its program decides."""
        self._losses[task] += 1
        if self._losses[task] > LOSSES_MAX:
            self._job.settle(PeerId(""), [(task, Status.DIED, b"what it needs was lost again and again")])
            return
        if not lost:
            self._stays.discard(task)  # it was its own value that could not be kept
        gone: list[bytes] = []
        for digest in sorted(lost.intersection(self._needs.get(task, ()))):
            # Others that need it come here too: it is fetched once.
            async with self._fetching:
                buffer = self._buffers.get(digest)
                if buffer is None or buffer.parts or not buffer.is_elsewhere:
                    continue
                if buffer.stored is not None:
                    if why := await self._copy(digest, buffer, buffer.stored):
                        self._job.settle(PeerId(""), [(task, Status.DIED, why.encode())])
                        return
                elif not await self._bring_here(digest, buffer):
                    assert buffer.kept is not None, "what is elsewhere is stored or kept"
                    self._distrusted.add(buffer.kept.peer)
                    gone.append(digest)
        if gone:
            self._job.tell(peer, (task, Status.LOST, b"".join(gone)))
        else:
            self._again(task)

    async def _copy(self, digest: bytes, buffer: Buffer, stored: StoredInput) -> str:
        """Keeps a copy of a stored file here, for lenders that do not hold it; why not, if that cannot be."""
        assert self._values is not None, "without it nothing is elsewhere"
        if digest in self._copies:
            return ""
        try:
            buffer.kept = self._copies[digest] = await self._values.keep_own(stored.read())
        except CroftError as error:
            return f"a stored file that it needs cannot be read: {error.message}"
        return ""

    def drop_copy(self, digest: bytes) -> None:
        """No task needs a stored file any more."""
        if held := self._copies.pop(digest, None):
            self._job.start(self._release([held]))

    async def close(self) -> None:
        """The job is over."""
        copies, self._copies = list(self._copies.values()), {}
        if copies:
            await self._release(copies)

    async def _release(self, copies: Sequence[Held]) -> None:
        assert self._values is not None, "without it nothing is kept"
        try:
            await self._values.release([held.token for held in copies])
        except CroftError as error:
            log.warning("copies of stored files are not dropped: %s", error.message)

    async def _bring_here(self, digest: bytes, buffer: Buffer) -> bool:
        """Fetches what a buffer is made of, so that it travels from here from now on. Whether that could be done."""
        assert buffer.kept is not None, "only what others keep is fetched"
        parts: list[bytes] = []
        offset = 0
        try:
            async for piece in self._read(Located(buffer.kept, digest)):
                parts.append(encode(BufferPart(digest, buffer.size, offset, piece)))
                offset += len(piece)
        except Unreachable:
            return False
        buffer.parts, buffer.filled = parts, offset
        return True

    # --- what the program asks ---------------------------------------------------------------------------------------

    def want(self, tasks: Sequence[int]) -> None:
        """The program waits for the values of these."""
        for task in tasks:
            if task in self._located:
                self._start_bringing(task)
            elif task in self._stays:
                self._wanted.add(task)
                for peer, chunk in self._job.chunks_of(task):
                    session = self._sessions.get(peer)
                    if session is not None and chunk in session.keeping:
                        with contextlib.suppress(ConnectionLost):
                            session.messages.post(SendResults(chunk))

    def release(self, tasks: Iterable[int]) -> None:
        """Nobody needs the values of these any more where they are; they may be made again."""
        for task in tasks:
            if located := self._located.pop(task, None):
                self._drop_at(located.held.peer, [located.held.token])

    def run_again(self, task: int, needs: list[bytes], *, stays: bool) -> None:
        """Runs a task once more, since its value was lost, or what it needs. Raises PeerMisbehaved for any other."""
        if task not in self._functions or not all(digest in self._buffers for digest in needs):
            raise PeerMisbehaved(f"task {task} cannot run again", step="local work")
        self.release([task])
        if needs:
            self._needs[task] = needs
        if not stays:
            self._wanted.add(task)
        self._again(task)

    def _again(self, task: int) -> None:
        # It may have been cancelled meanwhile, or run already.
        if (function := self._functions.get(task)) is not None and not self._job.chunks_of(task):
            self._job.deal_again(function, task)

    def _start_bringing(self, task: int) -> None:
        if task not in self._bringing:
            self._bringing.add(task)
            self._job.start(self._bring(task, self._located[task]))

    async def _bring(self, task: int, located: Located) -> None:
        """Brings a value to the program that waits for it, or tells that it is lost."""
        outcome = (task, int(Status.OK), b"")
        try:
            async for piece in self._read(located):
                await self.on_part(task, piece)
        except Unreachable:
            self._distrusted.add(located.held.peer)
            outcome = (task, int(Status.LOST), b"")
        finally:
            self._bringing.discard(task)
        self._job.tell(located.held.peer, outcome)

    async def _read(self, located: Located) -> AsyncIterator[bytes]:
        """The bytes of a value in parts; all have come if nothing is raised. Raises Unreachable."""
        assert self._values is not None, "without it nothing is kept"
        hasher = blake3()
        try:
            async for piece in self._values.read(located.held):
                hasher.update(piece)
                for at in range(0, len(piece), PART_BYTES):
                    yield piece[at : at + PART_BYTES]
        except (CroftError, ConnectionLost) as lost:
            log.info("a value that %s keeps cannot be had: %s", located.held.peer[:10], lost)
            raise Unreachable(f"a value that {located.held.peer[:10]} keeps cannot be had: {lost}") from None
        if hasher.digest() != located.digest:
            log.warning("peer %s gives another value than it was to keep", located.held.peer[:10])
            raise Unreachable(f"{located.held.peer[:10]} gives another value than it was to keep")

    def _drop_at(self, peer: PeerId, tokens: list[bytes]) -> None:
        session = self._sessions.get(peer)
        if session is not None and tokens:
            with contextlib.suppress(ConnectionLost):
                session.messages.post(DropResults(tokens))


def check_statuses(session: Session | None, chunk: int, outcomes: Sequence[Outcome]) -> None:
    """Takes in what a lender could not get for a chunk.

    Raises PeerMisbehaved if it says of the chunk what only stands for what it was not asked to do.
    """
    for _, status, payload in outcomes:
        if status <= Status.TOO_LARGE:
            continue
        is_asked = session is not None and (
            (status == Status.KEPT and chunk in session.keeping)
            or (status == Status.LOST and (chunk in session.keeping or chunk in session.fetching))
        )
        if not is_asked or (status == Status.LOST and len(payload) % DIGEST_BYTES):
            raise PeerMisbehaved(f"an outcome of status {status}", step="task results")
        if session is not None and status == Status.LOST:
            session.lost(chunk, _digests(payload))


def _located(peer: PeerId, payload: bytes) -> Located:
    """What a lender says that it keeps. Raises PeerMisbehaved if there is no such value."""
    kept = decode(payload, KeptResult, step="task results")
    if not 0 < len(kept.token) <= TOKEN_BYTES_MAX or not 0 < kept.size <= RESULT_BYTES_MAX:
        raise PeerMisbehaved("keeps an impossible value", step="task results")
    if len(kept.digest) != DIGEST_BYTES:
        raise PeerMisbehaved("keeps a value of no digest", step="task results")
    return Located(Held(peer, kept.token, kept.size), kept.digest)


def _digests(payload: bytes) -> set[bytes]:
    return {payload[at : at + DIGEST_BYTES] for at in range(0, len(payload), DIGEST_BYTES)}


def _is_unreadable(payload: bytes) -> bool:
    """Whether a task failed since the classes of a value that it needs are known to its program alone."""
    try:
        raised = decode(payload, RemoteException, step="task results")
    except PeerMisbehaved:
        return False
    return (raised.module, raised.name) == (ClassesMissing.__module__, ClassesMissing.__qualname__)


async def _nothing(_: int, __: bytes) -> None:
    """Takes a part for which there is nobody."""
