"""Decides what a relay does with each frame: whom to admit, where a datagram goes, how fast, and what it counts.

The protocol is iroh's relay protocol, versions 1 and 2, so that iroh endpoints can be clients. Payloads are QUIC
packets between two endpoints, which nobody here can read. Sans-IO: events go in, effects come out; challenges are drawn
outside, the time comes in as `now` (seconds of any steady clock).

A client is a connection until it has proved its key, then it is that key. Who is admitted is told by `Admit`; a key
outside it may hold a pass that a member signed, and then reaches that member only. A stranger is sent one challenge and
costs one small record, of which there is a bounded number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from croft.errors import PeerMisbehaved
from croft.overlay.relay_pass import RelayPass, open_pass
from croft.overlay.relay_rates import Rates, Schedule

CHALLENGE_CONTEXT: Final = "iroh-relay handshake v1 challenge signature"
CHALLENGE_BYTES: Final = 16
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
FRAME_BYTES_MAX: Final = (64 << 10) + 64
"""The largest frame that a client may send: one batch of datagrams and its header."""
UNPROVEN_MAX: Final = 128
UNPROVEN_PER_ADDRESS_MAX: Final = 16
"""Connections that have not proved their key yet; an address is a whole household, or a whole NAT."""
PROOF_S_MAX: Final = 5.0
CLIENTS_MAX: Final = 1_024
GUESTS_PER_MEMBER_MAX: Final = 8
PASSES_MAX: Final = 4_096
"""Passes remembered with the key that used each."""
PARTNERS_MAX: Final = 256
"""How many senders a client is told about when they leave."""
SILENCE_S_MAX: Final = 45.0
PING_EVERY_S: Final = 15.0

SERVER_CHALLENGE, CLIENT_AUTH, SERVER_CONFIRMS, SERVER_DENIES = 0, 1, 2, 3
DATAGRAM_TO_RELAY, BATCH_TO_RELAY, DATAGRAM_TO_CLIENT, BATCH_TO_CLIENT = 4, 5, 6, 7
ENDPOINT_GONE, PING, PONG = 8, 9, 10
STATUS_SAME_KEY_ELSEWHERE: Final = b"\x0d\x01"
_AUTH_BYTES: Final = 1 + KEY_BYTES + 1 + SIGNATURE_BYTES
_PING_BYTES: Final = 9
_ROUTED: Final = {DATAGRAM_TO_RELAY: bytes([DATAGRAM_TO_CLIENT]), BATCH_TO_RELAY: bytes([BATCH_TO_CLIENT])}
STEP: Final = "relay"


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """Somebody opened a connection. `challenge`: CHALLENGE_BYTES of fresh chance; `bearer`: the pass shown, if any."""

    client: int
    address: str
    bearer: str
    challenge: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Received:
    """A whole frame came from a client."""

    client: int
    frame: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Left:
    """A connection ended."""

    client: int


@dataclass(frozen=True, slots=True)
class Admit:
    """From now on just these keys may use the relay; whoever is connected without being in it is cut."""

    keys: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time passed; once a second is right. `wall` is Unix time, for the expiry of passes."""

    now: float
    wall: float


Event = Connected | Received | Left | Admit | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this frame to a client, not before the time `at` (0: now)."""

    client: int
    frame: bytes
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Read nothing more from a client until then: it sends faster than it may."""

    client: int
    until: float


@dataclass(frozen=True, slots=True)
class Close:
    """End a client's connection."""

    client: int
    reason: str


Effect = Transmit | Hold | Close


@dataclass(slots=True)
class Usage:
    """What was relayed for one key: bytes of payload from it and to it, and frames that found no room."""

    received_bytes: int = 0
    sent_bytes: int = 0
    dropped_frames: int = 0


@dataclass(slots=True)
class _Client:
    address: str
    bearer: str
    challenge: bytes
    came_at: float
    heard_at: float
    key: bytes = b""
    only_to: bytes = b""
    """A guest's one partner: the member that let it in."""
    partners: dict[bytes, None] = field(default_factory=dict)


class Relay:
    """One relay's clients, and what each may do.

    `verify_pass` opens the pass that a guest shows; it is an argument so that its cost can be left out of benchmarks.
    """

    def __init__(
        self,
        own: bytes,
        rates: Rates,
        now: float,
        wall: float,
        verify_pass: Callable[[str, float], RelayPass] = open_pass,
    ) -> None:
        self._own = own
        self._schedule = Schedule(rates, now)
        self._wall = wall
        self._verify_pass = verify_pass
        self._admitted: frozenset[bytes] = frozenset()
        self._clients: dict[int, _Client] = {}
        self._by_key: dict[bytes, int] = {}
        self._guests: dict[str, bytes] = {}
        self._usage: dict[bytes, Usage] = {}
        self._pinged_at = now

    @property
    def connected(self) -> int:
        """How many keys are connected."""
        return len(self._by_key)

    def usage(self) -> Mapping[bytes, Usage]:
        """What was relayed so far, by key."""
        return self._usage

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Received(client, frame, now):
                return self._received(client, frame, now)
            case Connected():
                return self._connected(event)
            case Left(client):
                return self._left(client)
            case Admit(keys):
                self._admitted = keys
                return [effect for client in list(self._clients) for effect in self._cut_if_unwelcome(client)]
            case Tick(now, wall):
                return self._tick(now, wall)
            case _:
                assert_never(event)

    # --- coming and going --------------------------------------------------------------------------------------------

    def _connected(self, event: Connected) -> Sequence[Effect]:
        assert len(event.challenge) == CHALLENGE_BYTES, "a challenge has its full length"
        unproven = [client for client in self._clients.values() if not client.key]
        of_address = sum(client.address == event.address for client in unproven)
        if len(unproven) >= UNPROVEN_MAX or of_address >= UNPROVEN_PER_ADDRESS_MAX:
            return [Close(event.client, "too many are connecting at once")]
        self._clients[event.client] = _Client(event.address, event.bearer, event.challenge, event.now, event.now)
        return [Transmit(event.client, bytes([SERVER_CHALLENGE]) + event.challenge)]

    def _left(self, number: int) -> Sequence[Effect]:
        client = self._clients.pop(number, None)
        if client is None or self._by_key.get(client.key) != number:
            return []
        del self._by_key[client.key]
        gone = bytes([ENDPOINT_GONE]) + client.key
        return [Transmit(self._by_key[key], gone) for key in client.partners if key in self._by_key]

    def _close(self, number: int, reason: str) -> list[Effect]:
        return [*self._left(number), Close(number, reason)]

    def _deny(self, number: int, reason: str) -> list[Effect]:
        text = reason.encode()
        assert len(text) < 64, "the length is one byte of a QUIC varint"
        return [Transmit(number, bytes([SERVER_DENIES, len(text)]) + text), *self._close(number, reason)]

    def _tick(self, now: float, wall: float) -> Sequence[Effect]:
        self._wall = wall
        effects: list[Effect] = []
        is_ping_due = now - self._pinged_at >= PING_EVERY_S
        if is_ping_due:
            self._pinged_at = now
        for number, client in list(self._clients.items()):
            if not client.key and now - client.came_at > PROOF_S_MAX:
                effects += self._close(number, "no proof of a key in time")
            elif now - client.heard_at > SILENCE_S_MAX:
                effects += self._close(number, "nothing heard for too long")
            elif client.key and is_ping_due:
                effects.append(Transmit(number, bytes([PING]) + client.challenge[:8]))
            if client.only_to:
                effects += self._cut_if_unwelcome(number)
        return effects

    # --- admission ---------------------------------------------------------------------------------------------------

    def _prove(self, number: int, client: _Client, frame: bytes) -> Sequence[Effect]:
        if len(frame) != _AUTH_BYTES or frame[0] != CLIENT_AUTH or frame[1 + KEY_BYTES] != SIGNATURE_BYTES:
            return self._close(number, "that was no proof of a key")
        key, signature = frame[1 : 1 + KEY_BYTES], frame[2 + KEY_BYTES :]
        # Asked first: a stranger is not worth a signature check.
        only_to = b"" if key in self._admitted else self._host_of(key, client.bearer)
        if only_to is None:
            return self._deny(number, "not a member here")
        if len(self._by_key) >= CLIENTS_MAX and key not in self._by_key:
            return self._deny(number, "full")
        message = blake3(client.challenge, derive_key_context=CHALLENGE_CONTEXT).digest()
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return self._deny(number, "wrong signature")
        if only_to:
            self._guests[client.bearer] = key
            if len(self._guests) > PASSES_MAX:
                del self._guests[next(iter(self._guests))]
        client.key, client.only_to = key, only_to
        former = self._by_key.get(key)
        self._by_key[key] = number
        effects: list[Effect] = [Transmit(number, bytes([SERVER_CONFIRMS]))]
        if former is not None:
            effects += [Transmit(former, STATUS_SAME_KEY_ELSEWHERE), *self._close(former, "the same key came again")]
        return effects

    def _host_of(self, key: bytes, bearer: str) -> bytes | None:
        """The member whose pass lets `key` in, or None. A pass is good for the key that used it first."""
        if not bearer or self._guests.get(bearer, key) != key:
            return None
        try:
            shown = self._verify_pass(bearer, self._wall)
        except PeerMisbehaved:
            return None
        if shown.relay != self._own or shown.host not in self._admitted:
            return None
        guests = sum(
            client.only_to == shown.host and client.key != key for client in self._clients.values() if client.key
        )
        return shown.host if guests < GUESTS_PER_MEMBER_MAX else None

    def _cut_if_unwelcome(self, number: int) -> list[Effect]:
        client = self._clients.get(number)
        if client is None or not client.key:
            return []
        if client.key in self._admitted:
            client.only_to = b""  # a guest that has become a member
            return []
        if client.only_to and self._host_of(client.key, client.bearer) == client.only_to:
            return []
        return self._close(number, "no longer a member here")

    # --- relaying ----------------------------------------------------------------------------------------------------

    def _received(self, number: int, frame: bytes, now: float) -> Sequence[Effect]:
        client = self._clients.get(number)
        if client is None:
            return []
        client.heard_at = now
        if not client.key:
            return self._prove(number, client, frame)
        kind = frame[0] if frame else -1
        head = _ROUTED.get(kind)
        if head is not None:
            return self._route(number, client, head, frame, now)
        if kind == PING and len(frame) == _PING_BYTES:
            return [Transmit(number, bytes([PONG]) + frame[1:])]
        if kind == PONG and len(frame) == _PING_BYTES:
            return []
        return self._close(number, "a frame that is none of the protocol's")

    def _route(self, number: int, client: _Client, head: bytes, frame: bytes, now: float) -> Sequence[Effect]:
        if not KEY_BYTES + 2 < len(frame) <= FRAME_BYTES_MAX:
            return self._close(number, "a datagram of no valid size")
        target = frame[1 : 1 + KEY_BYTES]
        usage = self._usage_of(client)
        receiver = self._by_key.get(target)
        if receiver is None or not self._may_meet(client, self._clients[receiver]):
            usage.dropped_frames += 1
            return []
        size = len(frame) - KEY_BYTES - 2
        verdict = self._schedule.take(client.key, size, now)
        if verdict.is_dropped:
            usage.dropped_frames += 1
            return [Hold(number, verdict.at)]
        usage.received_bytes += size
        self._usage_of(self._clients[receiver]).sent_bytes += size
        if len(client.partners) < PARTNERS_MAX:
            client.partners[target] = None
        return [Transmit(receiver, head + client.key + frame[1 + KEY_BYTES :], verdict.at)]

    def _usage_of(self, client: _Client) -> Usage:
        # What a guest uses is on the account of the member that let it in.
        return self._usage.setdefault(client.only_to or client.key, Usage())

    def _may_meet(self, one: _Client, other: _Client) -> bool:
        return (not one.only_to or one.only_to == other.key) and (not other.only_to or other.only_to == one.key)
