"""Keeps copies of a job with delegates, who carry it on while its submitter is away: the shell of `custody`.

Every two holders of a job that are up have a stream, which the one of better rank opens. Each says what it has, sends
what the other lacks, and then what is new. A copy is dropped when the submitter has everything, or after KEPT_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, assert_never

from croft.compute import custody as core
from croft.compute.durable import DurableJobs
from croft.compute.journal import Entry
from croft.compute.journal_exchange import HELD_BYTES_MAX, STEP, Exchange, Held, send_outcomes
from croft.compute.journal_messages import (
    CALL_MAY_HOLD,
    JOURNAL_PURPOSE,
    RANGES_MAX,
    BetweenHolders,
    Holding,
    HoldJob,
    JobOver,
    JobSpec,
    MayHold,
    ReadJob,
)
from croft.compute.lending_terms import Consumer
from croft.compute.messages import Declined
from croft.errors import Busy, ConnectionLost, CroftError, PeerMisbehaved, Refused, by_code
from croft.model.ids import JobId, PeerId, TwinId, is_key_id
from croft.wire.codec import decode_union, encode
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Clock, Stream

log = logging.getLogger(__name__)

TICK_S = 1.0
RETRY_S = 3.0
DECLINED_S = 60.0
ANSWER_S_MAX = 10.0
REUNITE_S = 6.0
"""A submitter that comes back waits so long for what its delegates have before it goes on by itself."""
SETTLE_S_MAX = 120.0
"""How long a submission waits until its delegates hold everything."""
DELEGATES_MAX = 8
HELD_JOBS_MAX = 64
KEPT_S = 30 * 86_400.0
LABEL_LENGTH_MAX = 200
NAMES_MAX = 1_024


Answer = Holding | Declined


class Holders(Protocol):
    """What delegation needs to know of the overlay."""

    def is_alive(self, peer: PeerId) -> bool: ...

    def name_of(self, peer: PeerId) -> str: ...

    def trusted(self) -> list[PeerId]:
        """Who may be asked to hold a job, best first: the owner's other devices, then people the owner trusts."""
        ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream: ...

    async def call(self, peer: PeerId, method: str, body: bytes, *, deadline_s: float) -> bytes: ...


class Delegations:
    """The jobs that this peer shares with other holders."""

    def __init__(
        self,
        jobs: DurableJobs,
        holders: Holders,
        own: PeerId,
        twin: TwinId,
        clock: Clock,
        check: Callable[[TwinId], None],
    ) -> None:
        self._jobs = jobs
        self._holders = holders
        self._own = own
        self._twin = twin
        self._clock = clock
        self._check = check
        self._held: dict[int, Held] = {}
        self._group: asyncio.TaskGroup | None = None
        self.before_holding: Callable[[JobSpec, PeerId], Awaitable[None]] = _nothing_before
        """Fetches from its submitter what else a job needs, before it is held here. Raises Refused."""
        jobs.before_resuming = self._reunite

    # --- life --------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Looks after copies until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._jobs.ready()
                for entry in await self._jobs.journal.entries():
                    if entry.delegates and entry.number not in self._held:
                        self._held[entry.number] = self._new(entry)
                    if entry.submitter != self._own and entry.created_at + KEPT_S < self._clock.now():
                        await self.drop(entry.number)
                while True:
                    for held in list(self._held.values()):
                        await self._look_after(held)
                    await asyncio.sleep(TICK_S)
            finally:
                self._group = None
                for held in self._held.values():
                    held.sessions.clear()

    def _new(self, entry: Entry) -> Held:
        return Held(entry, core.Custody(self._own, [entry.submitter, *entry.delegates], entry.epoch, entry.carrier))

    async def _look_after(self, held: Held) -> None:
        entry = await self._jobs.journal.find(held.entry.id)
        if entry is None:
            # Sessions end by themselves, once they have said so.
            self._held.pop(held.entry.number, None)
            return
        held.entry = entry
        now = asyncio.get_running_loop().time()
        alive = frozenset(peer for peer in held.holders if self._holders.is_alive(peer))
        if entry.state == "running":
            await self.perform(held, held.custody.handle(core.Looked(now, alive)))
        if entry.is_over and self._own != entry.submitter and entry.submitter not in alive:
            return  # complete, and nobody to bring it to
        for peer in held.holders[held.holders.index(self._own) + 1 :]:
            if peer in alive and peer not in held.sessions and held.retry_at.get(peer, 0.0) <= now:
                assert self._group is not None, "looked after while it serves"
                if entry.state != "filling":
                    held.sessions[peer] = self._group.create_task(
                        self._share(held, peer), name=f"journal.{self._holders.name_of(peer)}"
                    )

    async def perform(self, held: Held, effects: Sequence[core.Effect]) -> None:
        """Carries a job on here, or leaves it to others, as its custody says."""
        number = held.entry.number
        for effect in effects:
            match effect:
                case core.Carry(epoch):
                    log.info("job %s is carried on here now, epoch %d", held.entry.id, epoch)
                    self._jobs.journal.set_carrier(number, epoch, self._own)
                    if held.entry.state == "running":
                        self._jobs.carry(held.entry)
                case core.Follow(epoch, carrier):
                    log.info("job %s is carried on by %s, epoch %d", held.entry.id, carrier[:10], epoch)
                    self._jobs.journal.set_carrier(number, epoch, carrier)
                    await self._jobs.stop(number)
                case _:
                    assert_never(effect)
            self._jobs.fire(number)

    def _reunite(self, entry: Entry) -> asyncio.Future[None] | None:
        """Before a submitter goes on with a job after a restart: what its delegates have done meanwhile."""
        if not entry.delegates or entry.submitter != self._own:
            return None
        held = self._held[entry.number] = self._new(entry)

        async def level() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REUNITE_S):
                    while not held.level.issuperset(entry.delegates):
                        await held.moved.wait()
            await self._jobs.journal.settle()

        return asyncio.ensure_future(level())

    async def drop(self, number: int) -> None:
        """Forgets a copy."""
        held = self._held.pop(number, None)
        await self._jobs.drop(number)
        for session in list(held.sessions.values()) if held else ():
            if session is not asyncio.current_task():
                session.cancel()

    # --- choosing delegates ------------------------------------------------------------------------------------------

    async def delegate(self, job: JobId, named: Sequence[PeerId], count: int) -> None:
        """Gives copies of a job whose tasks are all in to `named` peers, or to `count` others; they are on disk there.

        Raises Refused, with every peer's reason, if not so many hold one in time.
        """
        count = min(DELEGATES_MAX, len(named) or count)
        entry = await self._jobs.find(job)
        chosen: list[PeerId] = []
        reasons: list[str] = []
        question = encode(MayHold(entry.spec.label))
        for peer in named or self._holders.trusted():
            if len(chosen) == count:
                break
            try:
                await self._holders.call(peer, CALL_MAY_HOLD, question, deadline_s=ANSWER_S_MAX)
                chosen.append(peer)
            except CroftError as error:
                reasons.append(f"{self._holders.name_of(peer)}: {error.message}")
        if len(chosen) == count:
            self._jobs.journal.set_delegates(entry.number, chosen)
            await self._jobs.journal.settle()
            held = self._held[entry.number] = self._new(await self._jobs.find(job))
            await self._look_after(held)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S_MAX):
                    while not held.kept.issuperset(chosen) and not held.declined:
                        await held.moved.wait()
            if held.kept.issuperset(chosen):
                return
            reasons += [f"{self._holders.name_of(peer)}: {reason}" for peer, reason in held.declined.items()]
        raise Refused(
            f"{count} delegates were wanted, and not so many hold the job"
            + (f": {'; '.join(reasons)}" if reasons else ""),
            remedy="Ask for fewer, name others, or see who is here: `croft peers`.",
        )

    def may_hold(self, twin: TwinId) -> None:
        """Raises Refused or Busy if this peer keeps no job for that person."""
        if twin != self._twin:
            self._check(twin)
        if sum(held.entry.submitter != self._own for held in self._held.values()) >= HELD_JOBS_MAX:
            raise Busy("this peer holds as many jobs of others as it can", remedy="Try again later, or ask others.")

    # --- streams between holders -------------------------------------------------------------------------------------

    async def _share(self, held: Held, peer: PeerId) -> None:
        """Opens a stream to a holder of worse rank, and keeps both up to date until it ends."""
        loop = asyncio.get_running_loop()
        pause_s = RETRY_S
        stream: Stream | None = None
        try:
            stream = await self._holders.open_stream(peer, JOURNAL_PURPOSE)
            async with MessageStream(stream, step=STEP) as messages:
                messages.post(await self._opening(held))
                async with asyncio.timeout(ANSWER_S_MAX):
                    payload = await messages.receive()
                answer: Holding | Declined = decode_union(payload or b"", Answer, step=STEP)
                if isinstance(answer, Declined):
                    pause_s = DECLINED_S
                    raise by_code(answer.code, answer.message, answer.remedy)
                await Exchange(messages, held, peer, self._own, self._jobs, self).run(answer)
        except (CroftError, ConnectionLost, TimeoutError) as error:
            reason = error.message if isinstance(error, CroftError) else str(error) or "no answer"
            log.info("job %s is not in step with %s: %s", held.entry.id, self._holders.name_of(peer), reason)
            if pause_s == DECLINED_S:
                held.declined[peer] = reason
                held.change()
        except PeerMisbehaved as fault:
            pause_s = DECLINED_S
            log.warning("peer %s broke the protocol: %s", self._holders.name_of(peer), fault)
        finally:
            if stream is not None:
                stream.abort()
            held.sessions.pop(peer, None)
            held.retry_at[peer] = loop.time() + pause_s

    async def _opening(self, held: Held) -> HoldJob:
        entry = held.entry
        recorded = await self._jobs.journal.recorded(entry.number, RANGES_MAX)
        return HoldJob(
            entry.id,
            entry.spec,
            entry.twin,
            entry.submitter,
            list(entry.delegates),
            entry.created_at,
            held.custody.epoch,
            held.custody.carrier,
            recorded,
        )

    async def serve_journal(self, consumer: Consumer, stream: Stream) -> None:
        """Serves a `journal/1` stream: another holder's, or one of the submitter's own devices that reads."""
        async with MessageStream(stream, step=STEP) as messages:
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    payload = await messages.receive()
                opening: BetweenHolders = decode_union(payload or b"", BetweenHolders, step=STEP)
                match opening:
                    case HoldJob():
                        held = await self._accept(consumer, opening)
                    case ReadJob():
                        await self._serve_reading(consumer, opening, messages)
                        await _linger(messages, stream)
                        return
                    case _:
                        raise PeerMisbehaved(f"{type(opening).__name__} opens no stream", step=STEP)
            except CroftError as error:
                await messages.send(Declined(error.code, error.message, error.remedy))
                await _linger(messages, stream)
                return
            except TimeoutError:
                return
            entry = held.entry
            recorded = await self._jobs.journal.recorded(entry.number, RANGES_MAX)
            messages.post(
                Holding(held.custody.epoch, held.custody.carrier, entry.tasks, entry.state != "filling", recorded)
            )
            known = Holding(opening.epoch, opening.carrier, 0, True, opening.recorded)
            try:
                await Exchange(messages, held, consumer.peer, self._own, self._jobs, self).run(known)
            except CroftError as error:
                await messages.send(Declined(error.code, error.message, error.remedy))
            await _linger(messages, stream)

    async def _accept(self, consumer: Consumer, opening: HoldJob) -> Held:
        holders = [PeerId(peer) for peer in (opening.submitter, *opening.delegates)]
        if not _is_sound(opening) or self._own not in holders or consumer.peer not in holders:
            raise PeerMisbehaved("an opening that is not sound", step=STEP)
        entry = await self._jobs.journal.find(JobId(opening.job))
        if entry is None:
            if consumer.peer != opening.submitter or consumer.twin != opening.twin:
                raise Refused("only its submitter brings a job here", remedy="Wait until the submitter is back.")
            self.may_hold(consumer.twin)
            await self.before_holding(opening.spec, consumer.peer)
            entry = await self._jobs.journal.adopt(
                JobId(opening.job),
                opening.spec,
                consumer.twin,
                consumer.peer,
                holders[1:],
                opening.created_at,
                opening.epoch,
                PeerId(opening.carrier),
            )
        elif entry.submitter != opening.submitter or entry.twin != opening.twin:
            raise Refused("this peer holds another job by that id", remedy="Submit it again.")
        held = self._held.get(entry.number)
        if held is None or (consumer.peer == entry.submitter and list(entry.delegates) != holders[1:]):
            self._jobs.journal.set_delegates(entry.number, holders[1:])
            held = self._held[entry.number] = self._new(replace(entry, delegates=tuple(holders[1:])))
        held.entry = replace(entry, delegates=held.entry.delegates)
        held.room_bytes = HELD_BYTES_MAX - await self._jobs.journal.bytes_for_others(self._own)
        return held

    async def _serve_reading(self, consumer: Consumer, opening: ReadJob, messages: MessageStream) -> None:
        entry = await self._jobs.find(opening.job, consumer.twin)
        async for outcomes in self._jobs.outcomes(entry.id, is_in_order=opening.is_in_order, after=opening.after):
            await send_outcomes(messages, outcomes)
        await messages.send(JobOver(entry.state))
        await messages.flush()


async def _nothing_before(spec: JobSpec, submitter: PeerId) -> None:
    pass


def _is_sound(opening: HoldJob) -> bool:
    peers = [opening.submitter, *opening.delegates]
    spec = opening.spec
    return (
        0 < len(opening.delegates) <= DELEGATES_MAX
        and len(set(peers)) == len(peers)
        and all(is_key_id(peer) for peer in (*peers, opening.twin))
        and opening.carrier in peers
        and 0 < opening.epoch < core.EPOCH_MAX
        and len(opening.job) <= NAMES_MAX
        and len(spec.label) <= LABEL_LENGTH_MAX
        and len(spec.only) + len(spec.never) <= NAMES_MAX
        and len(opening.recorded) <= RANGES_MAX
    )


async def _linger(messages: MessageStream, stream: Stream) -> None:
    """Ends our side so that the other reads all of it."""
    await messages.flush()
    await stream.finish()
    with contextlib.suppress(TimeoutError, ConnectionLost):
        async with asyncio.timeout(ANSWER_S_MAX):
            while await messages.receive() is not None:
                pass
