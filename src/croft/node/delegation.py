"""Jobs that other peers hold too: whom to ask to hold one, and asking how one stands from another device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from croft.compute.delegates import Delegations
from croft.compute.durable import DurableJobs
from croft.compute.journal import Entry
from croft.compute.journal_exchange import STEP, ResultParts
from croft.compute.journal_messages import (
    CALL_END_JOB,
    CALL_FIND_JOB,
    CALL_MAY_HOLD,
    JOURNAL_PURPOSE,
    BetweenHolders,
    EndJob,
    FindJob,
    FoundJob,
    HeldOutcomes,
    HeldResultPart,
    JobOver,
    MayHold,
    ReadJob,
)
from croft.compute.messages import Declined
from croft.errors import ConnectionLost, CroftError, NotFound, PeerMisbehaved, Refused, Unreachable, by_code
from croft.model.ids import PeerId, TwinId
from croft.overlay.contacts import Trust
from croft.wire.codec import decode, decode_union, encode
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Stream

FIND_S_MAX = 5.0
ASKED_MAX = 64
TRUSTED_WITH_JOBS = (Trust.HIGH, Trust.NORMAL)

Outcomes = Sequence[tuple[int, int, bytes]]


class OverlayHolders:
    """The overlay, as delegation wants to see it; fulfils `croft.compute.delegates.Holders`."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def is_alive(self, peer: PeerId) -> bool:
        """Whether a peer is reached by a link, or others say that it lives."""
        return self._overlay.is_alive(peer)

    def name_of(self, peer: PeerId) -> str:
        """What to call a peer."""
        return self._overlay.name_of(peer)

    def trusted(self) -> list[PeerId]:
        """Other devices of the owner, then members whom the owner trusts, the more trusted and the nearer first."""
        overlay = self._overlay

        def rank(peer: PeerId, twin: TwinId) -> tuple[bool, int, float, PeerId]:
            link = overlay.links.get(peer)
            round_trip_s = link.round_trip_s if link else None
            trust = TRUSTED_WITH_JOBS.index(overlay.contacts.trust_of(twin))
            return twin != overlay.own.twin, trust, 1.0 if round_trip_s is None else round_trip_s, peer

        fit = [
            (member.peer, member.twin)
            for member in overlay.members()
            if member.peer != overlay.own.peer
            and overlay.is_alive(member.peer)
            and overlay.contacts.trust_of(member.twin) in TRUSTED_WITH_JOBS
        ]
        return [peer for peer, _ in sorted(fit, key=lambda one: rank(*one))]

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable."""
        return await self._overlay.open_stream(peer, purpose)

    async def call(self, peer: PeerId, method: str, body: bytes, *, deadline_s: float) -> bytes:
        """Raises what `Overlay.call` raises."""
        return await self._overlay.call(peer, method, body, deadline_s=deadline_s)


class JobsElsewhere:
    """Jobs of this person that other peers hold, asked from here; and answers to who asks so."""

    def __init__(self, overlay: Overlay, jobs: DurableJobs, delegations: Delegations) -> None:
        self._overlay = overlay
        self._jobs = jobs
        self._delegations = delegations
        overlay.links.on_call(CALL_MAY_HOLD, self._may_hold)
        overlay.links.on_call(CALL_FIND_JOB, self._find)
        overlay.links.on_call(CALL_END_JOB, self._end)

    # --- asking ------------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> tuple[PeerId, FoundJob]:
        """A job and the holder that knows most of it: its submitter, else its carrier. Raises NotFound."""
        own = self._overlay.own
        others = [m for m in self._overlay.members() if m.peer != own.peer and self._overlay.is_alive(m.peer)]
        others.sort(key=lambda member: (member.twin != own.twin, member.peer))
        answers = await asyncio.gather(*(self._ask(member.peer, name) for member in others[:ASKED_MAX]))
        found = [answer for answer in answers if answer is not None]
        if not found:
            raise NotFound(
                f"no job `{name}` is kept here or by a peer that is up",
                remedy="See which are here: `croft jobs`. Jobs of your other devices are found by their id or name.",
            )
        return max(found, key=lambda one: (one[0] == one[1].submitter, one[0] == one[1].carrier, one[1].done))

    async def _ask(self, peer: PeerId, name: str) -> tuple[PeerId, FoundJob] | None:
        try:
            answer = await self._overlay.call(peer, CALL_FIND_JOB, encode(FindJob(name)), deadline_s=FIND_S_MAX)
            return peer, decode(answer, FoundJob, step=STEP)
        except (CroftError, PeerMisbehaved):
            return None

    async def end(self, name: str, *, forget: bool) -> FoundJob:
        """Cancels a job at the holder that knows most of it, or has it forgotten there. Raises NotFound."""
        peer, found = await self.find(name)
        answer = await self._overlay.call(peer, CALL_END_JOB, encode(EndJob(found.job, forget)), deadline_s=FIND_S_MAX)
        return decode(answer, FoundJob, step=STEP)

    async def outcomes(self, name: str, *, is_in_order: bool, after: int) -> AsyncIterator[tuple[PeerId, Outcomes]]:
        """What came of a job's tasks, as its holder has it, until it is over. Raises NotFound, Unreachable."""
        peer, found = await self.find(name)
        stream = await self._overlay.open_stream(peer, JOURNAL_PURPOSE)
        try:
            async with MessageStream(stream, step=STEP) as messages:
                messages.post(ReadJob(found.job, is_in_order, after))
                parts = ResultParts()
                while (payload := await messages.receive()) is not None:
                    message: BetweenHolders = decode_union(payload, BetweenHolders, step=STEP)
                    match message:
                        case HeldResultPart():
                            parts.take(message)
                        case HeldOutcomes(by, last):
                            yield PeerId(by), parts.whole(last)
                        case JobOver():
                            return
                        case Declined(code, text, remedy):
                            raise by_code(code, text, remedy)
                        case _:
                            raise PeerMisbehaved(f"{type(message).__name__} among results", step=STEP)
            raise ConnectionLost("ended early")
        except ConnectionLost as lost:
            raise Unreachable(
                f"{self._overlay.name_of(peer)}, which holds job {found.job}, was lost: {lost}",
                remedy="Ask again: another holder may have taken over.",
            ) from None
        finally:
            stream.abort()

    # --- answering ---------------------------------------------------------------------------------------------------

    async def _may_hold(self, link: Link, body: bytes) -> bytes:
        decode(body, MayHold, step=STEP)
        self._delegations.may_hold(link.greeted.twin)
        return b""

    async def _find(self, link: Link, body: bytes) -> bytes:
        wanted = decode(body, FindJob, step=STEP)
        return encode(await self.found(await self._entry(link.greeted.twin, wanted.name)))

    async def _end(self, link: Link, body: bytes) -> bytes:
        wanted = decode(body, EndJob, step=STEP)
        entry = await self._entry(link.greeted.twin, wanted.job)
        if wanted.forget and entry.submitter != self._overlay.own.peer:
            raise Refused(
                "only its submitter forgets a job", remedy="Cancel it; its copies go when the submitter is up."
            )
        answer = await self.found(entry)
        if wanted.forget:
            await self._jobs.forget(entry)
            return encode(answer)
        await self._jobs.cancel(entry)
        return encode(await self.found(await self._jobs.find(entry.id)))

    async def _entry(self, twin: TwinId, name: str) -> Entry:
        entry = await self._jobs.find(name, twin)
        if entry.twin != twin:
            raise NotFound(f"no job `{name}` of yours is kept here")
        return entry

    async def found(self, entry: Entry) -> FoundJob:
        """How a job that is kept here stands."""
        return FoundJob(
            entry.id,
            entry.spec.label,
            entry.submitter,
            entry.carrier,
            list(entry.delegates),
            entry.created_at,
            entry.ended_at,
            entry.state,
            entry.tasks,
            entry.done,
            entry.failed,
            {str(peer): count for peer, count in (await self._jobs.journal.done_by(entry.number)).items()},
        )
