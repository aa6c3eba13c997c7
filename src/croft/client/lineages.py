"""Which values of a job stay at peers, how they came about, and how they are made again if their keeper is lost.

A task that stays in the daemon's memory can run again; so what is remembered here is only which task each value came
of, and what that one needed. All of it happens on the loop of the job's session.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import cloudpickle

from croft.client.task_future import Kept, Lineage, TaskFuture
from croft.compute.messages import KeptResult
from croft.control.work_messages import CancelTasks, KeptBuffer, ReleaseValues, RunTaskAgain, WantValues
from croft.errors import Cancelled, TaskDied
from croft.wire.codec import Message, decode

MADE_AGAIN_MAX: Final = 5
"""How often a value is made again before whoever needs it is told that it is lost."""
LINEAGE_BYTES_MAX: Final = 256 << 20
"""What arguments of tasks may take whose values stay elsewhere; above this, values come with their outcomes."""


class Session(Protocol):
    """The job; see `croft.client.task_session.TaskSession`."""

    @property
    def is_ended(self) -> bool:
        """Whether it takes no more tasks."""
        ...

    def post(self, message: Message) -> None:
        """Sends a message to the daemon, if that is still there."""
        ...

    def use_buffers(self, number: int, digests: Sequence[bytes]) -> None:
        """What a task refers to from now on; what no task does need not be kept by the daemon."""
        ...

    def send_buffer(self, number: int, data: bytes) -> bytes:
        """Brings a buffer to the daemon, for a task that is going to use it; its digest."""
        ...

    def buffers_of(self, number: int) -> list[bytes]:
        """The digests of what a task refers to."""
        ...

    def fail(self, number: int, error: BaseException) -> None:
        """An open task has failed."""
        ...


class Lineages:
    """Those of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all: weakref.WeakValueDictionary[int, Lineage] = weakref.WeakValueDictionary()
        self._needed: dict[int, Lineage] = {}
        """Those whose task is open, or made again."""
        self._bringing: dict[int, list[concurrent.futures.Future[Any]]] = {}
        self._sizes: dict[int, int] = {}
        self.bytes = 0
        """What the arguments of tasks take whose values stay elsewhere."""

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, things happen on this loop."""
        self._loop = loop

    def can_refer(self, future: TaskFuture) -> bool:
        """Whether a task of this session may refer to the value of another one where that is."""
        lineage = future.lineage
        if lineage is None or lineage.kept is None or lineage.is_personal:
            return False
        return bool(lineage.session.loop is self._loop)

    # --- tasks that need values of others ----------------------------------------------------------------------------

    def begin(self, number: int, buffers: Sequence[bytes | Lineage]) -> tuple[list[bytes], list[Message]]:
        """A task is about to be submitted that needs such values. The digests of all it refers to, and what to say
        before. From any thread."""
        lineage = self._all[number] = self._needed[number] = Lineage(self._session, number, list(buffers))
        self._watch(lineage)
        for one in buffers:
            if isinstance(one, Lineage):
                one.users[lineage] = None
        return _named(lineage)

    def over(self, number: int) -> None:
        """A task has an outcome, or nobody waits for it: it does not need the values of others any more."""
        lineage = self._needed.pop(number, None)
        if lineage is None:
            return
        for one in lineage.buffers:
            if isinstance(one, Lineage):
                one.users.pop(lineage, None)
                one.session.lineages.release_if_needless(one)

    def lost_arguments(self, number: int, payload: bytes) -> None:
        """What a task needs could not be had by its lender, nor by the daemon: it is made again."""
        lineage = self._needed.get(number)
        if lineage is None:
            return
        lost = [one for one in lineage.buffers if isinstance(one, Lineage) and _is_lost(lineage, one, payload)]
        for one in dict.fromkeys(lost):
            one.session.lineages.make_again(one)
        self._send_again(lineage)

    def send_pickled(self, number: int) -> None:
        """Values that a task needs mean nothing where it ran: they are sent from here, as pickles."""
        lineage = self._needed.get(number)
        if lineage is None:
            return
        for one in lineage.buffers:
            if isinstance(one, Lineage):
                one.is_personal = True
        self._send_again(lineage)

    def _pickle(self, lineage: Lineage, one: Lineage, done: concurrent.futures.Future[Any]) -> None:
        if lineage.number not in self._needed:
            return
        try:
            data = cloudpickle.dumps(done.result(), protocol=pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            self._fail(lineage, error)
            return
        digest = self._session.send_buffer(lineage.number, data)
        lineage.buffers = [digest if other is one else other for other in lineage.buffers]
        one.users.pop(lineage, None)
        self._send_again(lineage)

    # --- values that stay elsewhere ----------------------------------------------------------------------------------

    def kept(self, peer: str, number: int, payload: bytes, size: int, future: TaskFuture | None) -> None:
        """A task is done, and its value stays at a peer. `future` is what stands for it, if anything still does."""
        where = decode(payload, KeptResult, step="local work")
        lineage = self._all.get(number)
        if lineage is None:
            if future is None:
                self._session.post(CancelTasks([number]))
                return
            lineage = self._all[number] = Lineage(self._session, number, [*self._session.buffers_of(number)])
            self._watch(lineage)
        if number not in self._sizes:
            self._sizes[number] = size
            self.bytes += size
        lineage.kept = lineage.last = Kept(peer, where.token, where.size, where.digest)
        self._session.use_buffers(number, [one for one in lineage.buffers if isinstance(one, bytes)])
        if future is not None and future.lineage is None:
            future.lineage = lineage
            weakref.finalize(future, self._let_go, lineage).atexit = False
        told, lineage.waiting = lineage.waiting, []
        for tell in told:
            tell(None)
        if lineage.made and number in self._bringing:
            self._session.post(WantValues([number]))
        self.over(number)
        self.release_if_needless(lineage)

    def bring(self, lineage: Lineage) -> concurrent.futures.Future[Any]:
        """The value, once it is here."""
        getting: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.bring_to(lineage, getting)
        return getting

    def bring_to(self, lineage: Lineage, getting: concurrent.futures.Future[Any]) -> None:
        """The same, into a future that is there already."""
        if lineage.value is not None:
            lineage.value.add_done_callback(lambda done: getting.set_result(done.result()))
            return
        waiting = self._bringing.setdefault(lineage.number, [])
        waiting.append(getting)
        if len(waiting) > 1:
            return
        if lineage.kept is None:
            self.make_again(lineage)
        else:
            self._session.post(WantValues([lineage.number]))

    def brought(self, number: int, value: object) -> None:
        """A value has come: those who wait for it have it. If it is nowhere else, others get it from here."""
        for getting in self._bringing.pop(number, []):
            getting.set_result(value)
        lineage = self._needed.get(number)
        if lineage is not None and lineage.made:
            lineage.is_personal = True
            lineage.value = concurrent.futures.Future()
            lineage.value.set_result(value)
            self.over(number)
            told, lineage.waiting = lineage.waiting, []
            for tell in told:
                tell(None)

    def lost(self, number: int) -> None:
        """A value that was to come is not where it was kept: it is made again."""
        lineage = self._all.get(number)
        if lineage is not None:
            self.make_again(lineage)

    @property
    def is_empty(self) -> bool:
        """Whether no task needs the value of another, and no value is elsewhere."""
        return not self._all and not self._needed and not self._bringing

    def is_awaited(self, number: int) -> bool:
        """Whether anybody but a future that is open waits for a task's value."""
        lineage = self._needed.get(number)
        return number in self._bringing or (lineage is not None and lineage.made > 0)

    def is_kept(self, number: int) -> bool:
        """Whether a task's value is kept somewhere, so that it may have to run again though it is done."""
        lineage = self._all.get(number)
        return lineage is not None and lineage.kept is not None

    def make_again(self, lineage: Lineage) -> None:
        """Runs the task again that a value came of, unless that is under way."""
        if lineage.number in self._needed or lineage.value is not None:
            return
        lineage.kept = None
        lineage.made += 1
        if self._session.is_ended:
            self._fail(lineage, Cancelled("the job was closed that made a value which is lost"))
            return
        if lineage.made > MADE_AGAIN_MAX:
            self._fail(lineage, TaskDied(f"a value was lost {lineage.made} times with the peers that kept it"))
            return
        self._needed[lineage.number] = lineage
        for one in lineage.buffers:
            if isinstance(one, Lineage):
                one.users[lineage] = None
        self._send_again(lineage)

    def when_made(self, lineage: Lineage, fn: Callable[[object], None]) -> None:
        """Calls `fn` when a value that was lost is there again, or is not to be had. From any thread."""

        def wait() -> None:
            if lineage.kept is not None:
                fn(lineage)
            else:
                lineage.waiting.append(fn)
                self.make_again(lineage)

        assert self._loop is not None, "sessions are opened before they are used"
        self._loop.call_soon_threadsafe(wait)

    def failed(self, number: int, error: BaseException) -> None:
        """A task that ran again has failed, or the job has."""
        lineage = self._all.get(number)
        if lineage is not None and lineage.made:
            self._fail(lineage, error)

    def fail_all(self, error: BaseException) -> None:
        """The job has ended: nothing comes any more."""
        for number in list(self._bringing):
            for getting in self._bringing.pop(number):
                getting.set_exception(error)
        for lineage in list(self._needed.values()):
            if lineage.made:
                self._fail(lineage, error)
            self.over(lineage.number)

    def release_if_needless(self, lineage: Lineage) -> None:
        """Has a value dropped where it is kept, if no future stands for it and no open task needs it."""
        if lineage.is_let_go and not lineage.users and lineage.kept is not None and lineage.number not in self._needed:
            lineage.kept = None
            self._session.post(ReleaseValues([lineage.number]))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _send_again(self, lineage: Lineage) -> None:
        """Has a task run again, once all that it needs is somewhere."""
        if lineage.number not in self._needed:
            return
        for one in lineage.buffers:
            if isinstance(one, Lineage) and one.is_personal:
                getting = one.session.lineages.bring(one)
                getting.add_done_callback(partial(self._pickle, lineage, one))
                return
            if isinstance(one, Lineage) and one.kept is None:
                one.waiting.append(lambda error: self._go_on(lineage, error))
                one.session.lineages.make_again(one)
                return
        digests, before = _named(lineage)
        for message in before:
            self._session.post(message)
        self._session.use_buffers(lineage.number, digests)
        self._session.post(RunTaskAgain(lineage.number, digests, stays=True))

    def _go_on(self, lineage: Lineage, error: BaseException | None) -> None:
        if error is None:
            # Later, so that a chain of any length does not end in a recursion of that depth.
            assert self._loop is not None, "sessions are opened before they are used"
            self._loop.call_soon(self._send_again, lineage)
        else:
            self._fail(lineage, error)

    def _fail(self, lineage: Lineage, error: BaseException) -> None:
        self.over(lineage.number)
        lineage.error = error
        self._session.post(CancelTasks([lineage.number]))
        told, lineage.waiting = lineage.waiting, []
        for tell in told:
            tell(error)
        for getting in self._bringing.pop(lineage.number, []):
            getting.set_exception(error)
        self._session.fail(lineage.number, error)

    def _watch(self, lineage: Lineage) -> None:
        weakref.finalize(lineage, self._forgotten, lineage.number).atexit = False

    def _let_go(self, lineage: Lineage) -> None:
        lineage.is_let_go = True
        self._soon(self.release_if_needless, lineage)

    def _forgotten(self, number: int) -> None:
        self._soon(self._forget, number)

    def _forget(self, number: int) -> None:
        """Nothing can ask for a task's value any more."""
        if number in self._sizes:
            self.bytes -= self._sizes.pop(number)
            self._session.use_buffers(number, ())
            self._session.post(CancelTasks([number]))

    def _soon(self, work: Callable[..., None], *arguments: object) -> None:
        # From wherever rubbish is collected: nothing may wait here.
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(work, *arguments)
            except RuntimeError:
                return  # it was closed just now, and all of the job with it


def _named(lineage: Lineage) -> tuple[list[bytes], list[Message]]:
    """What a task refers to, by digest, and where the daemon finds what of it is elsewhere."""
    digests: list[bytes] = []
    before: list[Message] = []
    lineage.sent = {}
    for one in lineage.buffers:
        if isinstance(one, bytes):
            digests.append(one)
            continue
        # If it is lost, or is being made again, the task comes back, and waits then.
        where = one.kept or one.last
        assert where is not None, "only values that are somewhere are referred to"
        digests.append(where.digest)
        lineage.sent[where.digest] = where.token
        before.append(KeptBuffer(where.digest, where.size, where.peer, where.token))
    return digests, before


def _is_lost(lineage: Lineage, one: Lineage, payload: bytes) -> bool:
    """Whether an outcome LOST speaks of this value as it is now, and not as it was when the task was sent."""
    kept = one.kept
    return kept is not None and kept.digest in payload and lineage.sent.get(kept.digest) == kept.token
