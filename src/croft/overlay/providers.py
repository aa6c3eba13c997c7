"""Decides which statements of the kind "this peer has what that key names" are kept here for others, and for how long.

A statement is signed by the peer that it speaks of, and must be made anew before it expires. Sans-IO.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId
from croft.overlay.lookup_messages import Provision
from croft.overlay.passport import SEQUENCE_MAX
from croft.overlay.records import CLOCK_AHEAD_S_MAX
from croft.wire.envelope import open_signed, sign

PROVISION_KIND = "provision"
LIFETIME_S = 7_200.0
RENEW_AFTER_S = 2_400.0
KEY_LENGTH_MAX = 200
PER_KEY_MAX = 64
PER_PEER_MAX = 8_192
ALL_MAX = 131_072
STEP = "provision"


@dataclass(frozen=True, slots=True)
class Provided:
    """An opened statement. `descriptor`: of the peer, for those who do not know it."""

    community: CommunityId
    key: str
    peer: PeerId
    sequence: int
    record: bytes = field(repr=False)
    descriptor: bytes = field(default=b"", repr=False)


def sign_provision(device: SecretKey, community: CommunityId, key: str, sequence: int) -> bytes:
    """The statement that this device has what `key` names."""
    return sign(device.signer, PROVISION_KIND, Provision(community, key, sequence))


def open_provision(community: CommunityId, record: bytes, now: float) -> Provided:
    """What a statement says. Raises PeerMisbehaved unless every part of it holds and it is of the present."""
    signer, said = open_signed(record, PROVISION_KIND, Provision, step=STEP)
    if said.community != community:
        raise PeerMisbehaved("a provision in another community", step=STEP)
    if not is_key(said.key):
        raise PeerMisbehaved(f"a key of {len(said.key)} letters, or unprintable ones", step=STEP)
    if not 0 <= said.sequence <= SEQUENCE_MAX:
        raise PeerMisbehaved("a provision with an impossible sequence", step=STEP)
    if not now - LIFETIME_S <= said.sequence / 1000 <= now + CLOCK_AHEAD_S_MAX:
        raise PeerMisbehaved("a provision that has expired or is of the future", step=STEP)
    return Provided(community, said.key, PeerId(signer), said.sequence, record)


def is_key(text: str) -> bool:
    """Whether `text` can be looked up: printable, neither empty nor too long."""
    return 0 < len(text) <= KEY_LENGTH_MAX and text.isprintable()


class Providers:
    """Statements that are kept here, bounded per key, per peer and in all."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[CommunityId, str], dict[PeerId, Provided]] = {}
        self._per_peer: dict[PeerId, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, provided: Provided) -> bool:
        """Whether it is kept; one that is older than what is known changes nothing."""
        table = self._by_key.setdefault((provided.community, provided.key), {})
        known = table.get(provided.peer)
        if known is None:
            is_full = len(table) >= PER_KEY_MAX or self._per_peer.get(provided.peer, 0) >= PER_PEER_MAX
            if is_full or self._count >= ALL_MAX:
                if not table:
                    del self._by_key[provided.community, provided.key]
                return False
            self._per_peer[provided.peer] = self._per_peer.get(provided.peer, 0) + 1
            self._count += 1
        elif known.sequence >= provided.sequence:
            return True
        table[provided.peer] = provided
        return True

    def of(self, community: CommunityId, key: str, now: float) -> list[Provided]:
        """The statements about a key that hold now, newest first."""
        table = self._by_key.get((community, key), {})
        held = [p for p in table.values() if p.sequence / 1000 + LIFETIME_S >= now]
        return sorted(held, key=lambda provided: -provided.sequence)

    def expire(self, now: float) -> None:
        """Forgets what no longer holds."""
        for name, table in list(self._by_key.items()):
            for peer in [peer for peer, p in table.items() if p.sequence / 1000 + LIFETIME_S < now]:
                self._forget(name, peer)

    def _forget(self, name: tuple[CommunityId, str], peer: PeerId) -> None:
        del self._by_key[name][peer]
        if not self._by_key[name]:
            del self._by_key[name]
        self._count -= 1
        self._per_peer[peer] -= 1
        if not self._per_peer[peer]:
            del self._per_peer[peer]
