"""Decides what a peer lets its local network see, and whom of those heard there to dial.

A beacon is a name and a sealed box. The name is a random number and a keyed hash of it, made anew every few minutes:
who has the key knows at once that a member speaks, and nobody else learns even which community it is, or that it is the
same peer as a while ago. The box holds the peer and its addresses (AES-GCM, all boxes of one size). The key comes from
the community's first grant, which is shown to members only, and from every revocation that members hold, which nobody
tells to whom it shuts out: with each, the key changes, and a device that was revoked understands no beacon made since.

No clock counts in it: without internet, clocks are wrong. Sans-IO: what is drawn at random comes in as a seed.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId, PeerId
from croft.wire.codec import Message, decode, encode

CONTEXT = "croft lan beacon v1"
NAME_BYTES = 8
TAG_BYTES = 8
NONCE_BYTES = 12
SEED_BYTES = NAME_BYTES + NONCE_BYTES
CONTENT_BYTES = 512
SEALED_BYTES = NONCE_BYTES + CONTENT_BYTES + 16
ADDRESSES_MAX = 8
ADDRESS_CHARS_MAX = 48
COMMUNITIES_MAX = 8
"""Communities that a peer shows itself to; each is a beacon of its own."""
ROTATE_S = 600.0
NEAR_MAX = 256
FORGET_S = 3 * ROTATE_S
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
EARLIER_KEYS_MAX = 16
"""So many revocations a member may be behind, and is still understood."""


class BeaconContent(Message, frozen=True):
    """What is in the box."""

    peer: bytes
    addresses: list[str]


@dataclass(frozen=True, slots=True)
class Beacon:
    """What the network sees."""

    name: str
    sealed: bytes


def beacon_keys(first_grant: bytes, revocations: Sequence[bytes] = ()) -> tuple[bytes, ...]:
    """The keys of a community's beacons: that to make them with, and earlier ones, by which they are understood too.

    `revocations` are the records, in an order that all members agree on.
    """
    keys = [blake3(first_grant, derive_key_context=CONTEXT).digest()]
    for record in revocations:
        keys.append(blake3(keys[-1] + record, derive_key_context=CONTEXT).digest())
    return tuple(reversed(keys[-1 - EARLIER_KEYS_MAX :]))


def seal(key: bytes, peer: PeerId, addresses: Sequence[str], seed: bytes) -> Beacon:
    """A new beacon, made of SEED_BYTES of chance."""
    assert len(seed) == SEED_BYTES, "a beacon is made of a full seed"
    number, nonce = seed[:NAME_BYTES], seed[NAME_BYTES:]
    name = (number + _tag(key, number)).hex()
    fit = [address for address in addresses if len(address) <= ADDRESS_CHARS_MAX][:ADDRESSES_MAX]
    content = encode(BeaconContent(bytes.fromhex(peer), fit))
    padded = (len(content).to_bytes(2, "big") + content).ljust(CONTENT_BYTES, b"\0")
    assert len(padded) == CONTENT_BYTES, "eight addresses fit"
    return Beacon(name, nonce + AESGCM(key).encrypt(nonce, padded, name.encode()))


def key_of(keys: Iterable[bytes], name: str) -> bytes | None:
    """Which of these keys made the name; None for a stranger's."""
    if len(name) != 2 * (NAME_BYTES + TAG_BYTES):
        return None
    try:
        raw = bytes.fromhex(name)
    except ValueError:
        return None
    number, tag = raw[:NAME_BYTES], raw[NAME_BYTES:]
    return next((key for key in keys if hmac.compare_digest(_tag(key, number), tag)), None)


def unseal(keys: Iterable[bytes], beacon: Beacon) -> tuple[PeerId, tuple[str, ...]] | None:
    """The peer and its addresses, if one of these keys made the beacon."""
    key = key_of(keys, beacon.name)
    if key is None or len(beacon.sealed) != SEALED_BYTES:
        return None
    nonce, box = beacon.sealed[:NONCE_BYTES], beacon.sealed[NONCE_BYTES:]
    try:
        padded = AESGCM(key).decrypt(nonce, box, beacon.name.encode())
        size = int.from_bytes(padded[:2], "big")
        content = decode(padded[2 : 2 + size], BeaconContent, step="beacon")
    except (InvalidTag, PeerMisbehaved):
        return None
    if len(content.peer) != 32 or len(content.addresses) > ADDRESSES_MAX:
        return None
    return PeerId(content.peer.hex()), tuple(a for a in content.addresses if len(a) <= ADDRESS_CHARS_MAX)


def _tag(key: bytes, number: bytes) -> bytes:
    return blake3(number, key=key).digest(length=TAG_BYTES)


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """A beacon is on the network."""

    beacon: Beacon
    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time passed. `keys` (see `beacon_keys`) and `addresses` are those of now; `seed`: COMMUNITIES_MAX *
    SEED_BYTES of chance.
    """

    keys: Mapping[CommunityId, tuple[bytes, ...]]
    addresses: tuple[str, ...]
    now: float
    seed: bytes


Event = Heard | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announce:
    """Let the network see these beacons, and no others of ours."""

    beacons: tuple[Beacon, ...]


@dataclass(frozen=True, slots=True)
class Dial:
    """A member is near; if nothing else leads to it, this may."""

    peer: PeerId
    addresses: tuple[str, ...]


Effect = Announce | Dial


@dataclass(slots=True)
class _Near:
    addresses: tuple[str, ...]
    heard_at: float
    try_at: float
    wait_s: float = RETRY_FIRST_S


class LanBeacons:
    """One peer's beacons, and those it hears."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._keys: tuple[bytes, ...] = ()
        self._shown: tuple[Mapping[CommunityId, tuple[bytes, ...]], tuple[str, ...]] | None = None
        self._shown_at = 0.0
        self._near: dict[PeerId, _Near] = {}

    def is_ours(self, name: str) -> bool:
        """Whether a member of a community of ours is behind a name. Cheap: everybody's names come by."""
        return key_of(self._keys, name) is not None

    def not_shown(self) -> None:
        """What was to be announced last was not."""
        self._shown = None

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Heard(beacon, now):
                return self._heard(beacon, now)
            case Tick(keys, addresses, now, seed):
                return [*self._announce(keys, addresses, now, seed), *self._due(now)]
            case _:
                assert_never(event)

    def _heard(self, beacon: Beacon, now: float) -> Sequence[Effect]:
        found = unseal(self._keys, beacon)
        if found is None or found[0] == self._own or not found[1]:
            return []
        peer, addresses = found
        if peer not in self._near and len(self._near) >= NEAR_MAX:
            return []
        self._near[peer] = _Near(addresses, now, now + RETRY_FIRST_S)
        return [Dial(peer, addresses)]

    def _announce(
        self, keys: Mapping[CommunityId, tuple[bytes, ...]], addresses: tuple[str, ...], now: float, seed: bytes
    ) -> Sequence[Effect]:
        self._keys = tuple(key for some in keys.values() for key in some)
        shown = (dict(keys), addresses)
        if shown == self._shown and now - self._shown_at < ROTATE_S:
            return []
        self._shown, self._shown_at = shown, now
        if not addresses:
            return [Announce(())]
        seeds = [seed[start : start + SEED_BYTES] for start in range(0, len(seed), SEED_BYTES)]
        newest = [some[0] for some in keys.values()]
        made = (seal(key, self._own, addresses, part) for key, part in zip(newest, seeds, strict=False))
        return [Announce(tuple(made))]

    def _due(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer, near in list(self._near.items()):
            if now - near.heard_at > FORGET_S:
                del self._near[peer]
            elif now >= near.try_at:
                near.wait_s = min(near.wait_s * 2, RETRY_MAX_S)
                near.try_at = now + near.wait_s
                effects.append(Dial(peer, near.addresses))
        return effects
