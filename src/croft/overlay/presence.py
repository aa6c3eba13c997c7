"""What a member says of itself from time to time: that it lives, and how busy it is. Decides when it says so anew.

A presence is a small signed record that reaches every member, also without a link. It is rounded, and made at a pace
that falls with the size of the community, so that what each peer has to carry does not grow. Sans-IO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId
from croft.overlay.messages import Load, Presence
from croft.overlay.passport import SEQUENCE_MAX, check_load
from croft.overlay.records import CLOCK_AHEAD_S_MAX, Claim
from croft.wire.envelope import open_signed, sign

PRESENCE_KIND = "presence"
LIFETIME_S = 48 * 3_600.0
RENEW_AFTER_S = 3_600.0
RENEW_S_PER_MEMBER = 18.0
RENEW_AFTER_S_MAX = 24 * 3_600.0
STEP_CPU = 0.2
STEP_DISK = 0.05
PACE_S_MIN = 2.0
PACE_S_PER_MEMBER = 0.2
"""For slots: by these others choose."""
MACHINE_PACE_S_PER_MEMBER = 2.0
"""For processors and disk, which change also while nobody works for anybody, and are for people to look at.

Up to twice as long, by chance each time: peers that fell idle together do not all say so at once.
"""
PACE_S_MAX = 600.0
COMMUNITY_DIGITS = 16
"""So much of the community's id is signed with each presence."""
STEP = "presence"


@dataclass(frozen=True, slots=True)
class Present:
    """An opened presence."""

    peer: PeerId
    load: Load


def sign_presence(device: SecretKey, community: CommunityId, load: Load, sequence: int) -> bytes:
    """The record by which a device tells a community how busy it is."""
    presence = Presence(community[:COMMUNITY_DIGITS], sequence, load.slots_busy, load.cpu, load.disk)
    return sign(device.signer, PRESENCE_KIND, presence)


def open_presence(community: CommunityId, record: bytes) -> Claim:
    """What a presence claims. Raises PeerMisbehaved unless every part of it holds."""
    signer, said = open_signed(record, PRESENCE_KIND, Presence, step=STEP)
    if said.community != community[:COMMUNITY_DIGITS]:
        raise PeerMisbehaved("a presence in another community", step=STEP)
    if not 0 <= said.sequence <= SEQUENCE_MAX:
        raise PeerMisbehaved("a presence with an impossible sequence", step=STEP)
    load = Load(said.slots_busy, said.cpu, said.disk)
    check_load(load, step=STEP)
    peer = PeerId(signer)
    expires_at = said.sequence / 1000 + LIFETIME_S
    return Claim(peer, peer, said.sequence, expires_at, Present(peer, load))


def renew_after_s(members: int) -> float:
    """After how long a presence is said anew although nothing has changed."""
    return min(max(RENEW_AFTER_S, RENEW_S_PER_MEMBER * members), RENEW_AFTER_S_MAX)


class Chance(Protocol):
    """Where choices come from; seeded."""

    def random(self) -> float:
        """From 0 up to, but not, 1."""
        ...


class Pace:
    """When to say anew how busy this peer is."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._spread = 1.0
        self._said: Load | None = None
        self._said_at = -RENEW_AFTER_S_MAX
        self._refutes = -1

    def refute(self, sequence: int) -> None:
        """Somebody doubts that we live, at that sequence."""
        self._refutes = max(self._refutes, sequence)

    def due(self, load: Load, members: int, sequence: int, now: float) -> Load | None:
        """What to say now, if anything; `sequence` is that of the last presence."""
        since = now - self._said_at
        if since < 0:
            self._said_at, since = now, 0.0  # the clock was set back
        is_doubted = self._refutes >= sequence
        rounded = Load(load.slots_busy, round(load.cpu, 1), round(load.disk, 2))
        is_news = (since >= _pace_s(PACE_S_PER_MEMBER, members) and self._has_other_slots(rounded)) or (
            since >= self._spread * _pace_s(MACHINE_PACE_S_PER_MEMBER, members) and self._is_other_machine_load(rounded)
        )
        if not is_news and not (is_doubted and since >= PACE_S_MIN) and since < renew_after_s(members):
            return None
        self._said, self._said_at = rounded, now
        self._spread = 1.0 + self._chance.random()
        return rounded

    def _has_other_slots(self, load: Load) -> bool:
        return self._said is None or self._said.slots_busy != load.slots_busy

    def _is_other_machine_load(self, load: Load) -> bool:
        said = self._said
        return said is None or abs(said.cpu - load.cpu) >= STEP_CPU or abs(said.disk - load.disk) >= STEP_DISK


def _pace_s(per_member_s: float, members: int) -> float:
    return min(max(PACE_S_MIN, per_member_s * members), PACE_S_MAX)


assert LIFETIME_S > RENEW_AFTER_S_MAX + CLOCK_AHEAD_S_MAX, "renewed before it expires, also by a slow clock"
