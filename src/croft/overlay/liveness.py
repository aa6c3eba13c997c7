"""Knows which members are alive and how busy they are: the shell of `failure_detector` and `presence`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, assert_never

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import CommunityId, PeerId, is_key_id, short
from croft.overlay import failure_detector as core
from croft.overlay.gossip import Kind, Records
from croft.overlay.messages import Load, ProbeAnswer, ProbeWanted, Suspicion
from croft.overlay.presence import PRESENCE_KIND, Pace, Present, open_presence, sign_presence
from croft.overlay.records import Claim, Entry, Limits
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    from random import Random

    from croft.overlay.link import Link
    from croft.overlay.links import Links
    from croft.overlay.membership import Membership
    from croft.overlay.passport import Own
    from croft.ports import Clock

log = logging.getLogger(__name__)

NOTICE_SUSPICION = "suspicion"
CALL_PROBE = "probe"
PROBE_DEADLINE_S = 1.4
PROBES_AT_ONCE_MAX = 16
HEARD_LATELY_S = 5.0


class Liveness:
    """Who lives. `dial` makes a link to a member, or raises CroftError."""

    def __init__(
        self,
        own: Own,
        links: Links,
        records: Records,
        members: Membership,
        clock: Clock,
        chance: Random,
        load: Callable[[], Load],
        dial: Callable[[PeerId], Awaitable[Link]],
        limits: Limits,
    ) -> None:
        self._own = own
        self._links = links
        self._records = records
        self._members = members
        self._clock = clock
        self._load = load
        self._dial = dial
        self._core = core.FailureDetector(own.peer, chance)
        self._loads: dict[PeerId, Load] = {}
        self._pace = Pace(chance)
        self._sequence = -1
        self._probes = 0
        self.tasks: asyncio.TaskGroup | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Told when somebody died or came to life."""
        links.on_notice(NOTICE_SUSPICION, self._suspicion)
        links.on_call(CALL_PROBE, self._probe_for)
        records.register(
            Kind(
                PRESENCE_KIND,
                verify=self._verify,
                on_new=self._learned,
                on_overtaken=self._overtaken,
                is_kept=False,
                limits=limits,
            )
        )

    # --- questions ---------------------------------------------------------------------------------------------------

    def is_dead(self, peer: PeerId) -> bool:
        """Whether a peer is held for dead."""
        return self._core.is_dead(peer)

    def dead(self) -> frozenset[PeerId]:
        """All that are held for dead."""
        return frozenset(self._core.dead())

    def load_of(self, peer: PeerId) -> Load | None:
        """How busy a peer last said it is."""
        return self._loads.get(peer)

    @property
    def due_in_s(self) -> float | None:
        """In what time `tick` is to be called, if it matters: a death is to be known in time."""
        due_at = self._core.due_at
        return None if due_at is None else due_at - self._clock.now()

    # --- what the overlay feeds --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Some time passed."""
        self._perform(self._core.handle(core.Tick(self._clock.now())))
        self.tell_load()

    def tell_load(self) -> None:
        """Says how busy this peer is, if it is time to."""
        communities = sorted({member.community for member in self._members.members() if member.peer == self._own.peer})
        others = max((len(self._members.members(c)) for c in communities), default=0)
        if not communities:
            return
        load = self._pace.due(self._load(), others, self._sequence, self._clock.now())
        if load is not None:
            for community in communities:
                self.say(community, load)

    def say(self, community: CommunityId, load: Load | None = None) -> None:
        """Says so to one community now."""
        self._sequence = self._records.next_sequence()
        record = sign_presence(self._own.device, community, load or self._load(), self._sequence)
        self._records.publish(PRESENCE_KIND, community, record)

    def heard(self, peer: PeerId, sequence: int) -> None:
        """A signed word of a peer reached us."""
        self._perform(self._core.handle(core.Heard(peer, sequence)))

    def link_up(self, peer: PeerId) -> None:
        """A link is live."""
        self._perform(self._core.handle(core.LinkUp(peer)))

    def link_down(self, peer: PeerId, *, is_orderly: bool) -> None:
        """A link ended."""
        self._perform(self._core.handle(core.LinkDown(peer, is_orderly, self._clock.now())))

    def unreachable(self, peer: PeerId) -> None:
        """A peer was dialled and did not answer."""
        self._perform(self._core.handle(core.Unreachable(peer, self._clock.now())))

    def forget(self, peer: PeerId) -> None:
        """A peer is no member any more."""
        self._loads.pop(peer, None)
        self._core.handle(core.Forgotten(peer))

    # --- presence as a record ----------------------------------------------------------------------------------------

    def _verify(self, community: CommunityId, record: bytes, now: float) -> Claim | None:
        claim = open_presence(community, record)
        known = community in self._members.communities_of(PeerId(claim.key))
        return claim if known else None

    def _learned(self, entry: Entry) -> None:
        present = entry.claim.value
        assert isinstance(present, Present), "verified as one"
        if present.peer != self._own.peer:
            self._loads[present.peer] = present.load
            self.heard(present.peer, entry.claim.sequence)

    def _overtaken(self, entry: Entry) -> None:
        # From before a restart, when the clock stood later.
        self._pace.refute(max(entry.claim.sequence, self._sequence))

    # --- probes and suspicions ---------------------------------------------------------------------------------------

    def _suspicion(self, link: Link, body: bytes) -> None:
        said = decode(body, Suspicion, step="suspicion")
        if not is_key_id(said.peer) or said.sequence < 0:
            raise PeerMisbehaved("a suspicion of nobody", step="suspicion")
        event = core.Suspected(link.peer, PeerId(said.peer), said.sequence, self._clock.now())
        self._perform(self._core.handle(event))

    async def _probe_for(self, link: Link, body: bytes) -> bytes:
        peer = PeerId(decode(body, ProbeWanted, step="probe").peer)
        shared = self._members.communities_of(peer) & self._members.communities_of(link.peer)
        if not shared or self._probes >= PROBES_AT_ONCE_MAX:
            return encode(ProbeAnswer(False))
        self._probes += 1
        try:
            return encode(ProbeAnswer(await self._reaches(peer)))
        finally:
            self._probes -= 1

    async def _reaches(self, peer: PeerId) -> bool:
        link = self._links.get(peer)
        if link is not None and link.silence_s < HEARD_LATELY_S:
            return True
        try:
            async with asyncio.timeout(PROBE_DEADLINE_S):
                if link is not None:
                    await link.call(CALL_PROBE, encode(ProbeWanted(self._own.peer)), deadline_s=PROBE_DEADLINE_S)
                else:
                    await self._dial(peer)
        except (CroftError, TimeoutError):
            return False
        return True

    async def _probe(self, peer: PeerId, helpers: Sequence[PeerId]) -> None:
        async def ask(helper: PeerId) -> bool:
            link = self._links.get(helper)
            if link is None:
                return False
            try:
                answer = await link.call(CALL_PROBE, encode(ProbeWanted(peer)), deadline_s=PROBE_DEADLINE_S)
                return decode(answer, ProbeAnswer, step="probe").is_reached
            except (CroftError, PeerMisbehaved):
                return False

        answers = await asyncio.gather(self._reaches(peer), *(ask(helper) for helper in helpers))
        if any(answers):
            self._perform(self._core.handle(core.Reached(peer)))

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Probe(peer, helpers):
                    if self.tasks is not None:
                        self.tasks.create_task(self._probe(peer, helpers), name=f"probe.{short(peer)}")
                case core.Tell(to, peer, sequence):
                    link = self._links.get(to)
                    if link is not None and self._records.shares(to) & self._members.communities_of(peer):
                        link.notify(NOTICE_SUSPICION, encode(Suspicion(peer, sequence)))
                case core.Refute(sequence):
                    self._pace.refute(sequence)
                    self._records.raise_sequence(sequence)
                    self.tell_load()
                case core.Died(peer):
                    self.on_change()
                    log.info("peer %s is held for dead", short(peer))
                case core.Revived(peer):
                    self.on_change()
                    log.info("peer %s is alive after all", short(peer))
                case _:
                    assert_never(effect)
