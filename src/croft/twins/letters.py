"""Letters: what one twin writes to another, or to a room of a community, sealed for the devices of its readers alone.

A letter belongs to a *feed*: all that one device writes into one box, numbered without gaps, each naming the digest of
the one before. It is signed by that device, and sealed under a key which it, or a letter shortly before it, carries
for each device that may read (HPKE, RFC 9180). Whoever keeps letters for others sees who writes to whom, when, and
about how much; nothing else. Format: docs/specs/letters.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.identity.signed import open_by_device, sign_by_device
from croft.model.ids import is_key_id
from croft.wire.codec import Message, decode, encode

LETTER_KIND: Final = "letter"
LETTER_BYTES_MAX: Final = 64 << 10
TEXT_BYTES_MAX: Final = 16 << 10
ROOM_CHARS_MAX: Final = 64
KEYS_PER_LETTER_MAX: Final = 256
LIFETIME_S: Final = 30 * 86_400.0
CLOCK_AHEAD_S_MAX: Final = 600.0
ID_BYTES: Final = 32
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
SIZE_BYTES: Final = 4
CLASS_BYTES: Final = 256
"""What is sealed is a multiple of so many bytes long."""
SEQUENCE_MAX: Final = 1 << 40
READING_CONTEXT: Final = "croft letter reading key v1"
STEP: Final = "letter"

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class Box(NamedTuple):
    """Where letters go: the inbox of twin `to`, or a `room` of everybody in the community (then `to` is empty)."""

    community: str
    to: str
    room: str = ""


class Feed(NamedTuple):
    """All letters of one device in one box."""

    box: Box
    device: str


class Letter(Message, frozen=True):
    """As it travels.

    Attributes:
        owner, device: the author, by public keys. to: the reader's; empty for a room.
        previous: the digest of the letter before it in its feed; empty for the first.
        key: the number of the key that it is sealed under; keys: that key, sealed for one device each.
        sealed: a `Body`; empty where a letter only carries more keys.
    """

    owner: bytes
    device: bytes
    community: str
    to: bytes
    room: str
    sequence: int
    previous: bytes
    written_at: float
    key: int
    keys: list[tuple[bytes, bytes]]
    sealed: bytes

    @property
    def feed(self) -> Feed:
        """The feed that it belongs to."""
        return Feed(Box(self.community, self.to.hex(), self.room), self.device.hex())


class Body(Message, frozen=True):
    """What readers read. `kind`: what `text` is; readers show what they do not know as it is."""

    kind: str
    text: str
    answers: str = ""


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes: a device, and what its twin says of it."""

    device: SecretKey
    certificate: bytes
    twin: bytes

    @property
    def id(self) -> bytes:
        """The device's public key."""
        return bytes.fromhex(self.device.public)


def reading_key(device: SecretKey) -> X25519PrivateKey:
    """The key by which a device opens what is sealed for it."""
    return X25519PrivateKey.from_private_bytes(blake3(device.raw, derive_key_context=READING_CONTEXT).digest())


def sign_letter(author: Author, letter: Letter) -> bytes:
    """The bytes of a letter, as others keep them."""
    return sign_by_device(author.device, author.certificate, LETTER_KIND, letter)


def digest_of(record: bytes) -> bytes:
    """By which the next letter of the feed names this one."""
    return blake3(record).digest()


def open_letter(record: bytes) -> Letter:
    """The letter, whose every signature holds and whose bounds are kept. Raises PeerMisbehaved."""
    letter = open_by_device(record, LETTER_KIND, Letter, bytes_max=LETTER_BYTES_MAX, what="a letter", step=STEP)
    if not is_key_id(letter.community) or len(letter.to) not in (0, ID_BYTES):
        raise PeerMisbehaved("a letter to an impossible address", step=STEP)
    if bool(letter.to) == bool(letter.room) or not is_room(letter.room or "x"):
        raise PeerMisbehaved("a letter to neither an inbox nor a room", step=STEP)
    if not 0 < letter.sequence <= SEQUENCE_MAX or not 0 < letter.key <= letter.sequence:
        raise PeerMisbehaved("a letter with impossible numbers", step=STEP)
    if len(letter.previous) != (0 if letter.sequence == 1 else ID_BYTES):
        raise PeerMisbehaved("a letter that does not name the one before it", step=STEP)
    if len(letter.keys) > KEYS_PER_LETTER_MAX or any(len(device) != ID_BYTES for device, _ in letter.keys):
        raise PeerMisbehaved("a letter with too many or impossible keys", step=STEP)
    return letter


def is_of_the_present(letter: Letter, now: float) -> bool:
    """Whether it may still be passed on."""
    return now - LIFETIME_S <= letter.written_at <= now + CLOCK_AHEAD_S_MAX


def is_room(name: str) -> bool:
    """Whether a room can be called so."""
    return 0 < len(name) <= ROOM_CHARS_MAX and name.isprintable() and name == name.strip()


def seal_body(letter: Letter, body: Body, key: bytes, nonce: bytes) -> bytes:
    """`body` for whoever has the letter's key. `nonce`: random."""
    plain = encode(body)
    padding = -(SIZE_BYTES + len(plain)) % CLASS_BYTES
    padded = len(plain).to_bytes(SIZE_BYTES, "big") + plain + bytes(padding)
    return nonce + AESGCM(key).encrypt(nonce, padded, _bound_to(letter))


def open_body(letter: Letter, key: bytes) -> Body:
    """What the letter says. Raises PeerMisbehaved where the key does not fit, or the content is none."""
    try:
        padded = AESGCM(key).decrypt(letter.sealed[:NONCE_BYTES], letter.sealed[NONCE_BYTES:], _bound_to(letter))
    except (InvalidTag, ValueError):
        raise PeerMisbehaved("a letter that does not open with its key", step=STEP) from None
    size = int.from_bytes(padded[:SIZE_BYTES], "big")
    return decode(padded[SIZE_BYTES : SIZE_BYTES + size], Body, step=STEP)


def seal_key(letter: Letter, key: bytes, readers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """`key` for each of `readers`, which are reading keys by device."""
    return [
        (device, _SUITE.encrypt(key, X25519PublicKey.from_public_bytes(public), _purpose(letter)))
        for device, public in readers.items()
    ]


def find_key(letter: Letter, device: bytes, secret: X25519PrivateKey) -> bytes | None:
    """The key that a letter carries for this device; None if it carries none for it. Raises PeerMisbehaved."""
    for reader, sealed in letter.keys:
        if reader == device:
            try:
                key: bytes = _SUITE.decrypt(sealed, secret, _purpose(letter))
            except (InvalidTag, ValueError):
                raise PeerMisbehaved("a letter whose key does not open", step=STEP) from None
            if len(key) != KEY_BYTES:
                raise PeerMisbehaved("a letter with a key of the wrong length", step=STEP)
            return key
    return None


def check_body(body: Body) -> bool:
    """Whether a letter has room for it."""
    return len(body.text.encode()) <= TEXT_BYTES_MAX


def parts_of(readers: Mapping[bytes, bytes]) -> Sequence[Mapping[bytes, bytes]]:
    """Readers in portions for which one letter has room; at least one."""
    pairs = sorted(readers.items())
    starts = range(0, max(1, len(pairs)), KEYS_PER_LETTER_MAX)
    return [dict(pairs[at : at + KEYS_PER_LETTER_MAX]) for at in starts]


def _purpose(letter: Letter) -> bytes:
    return encode((LETTER_KIND, letter.owner, letter.device, letter.community, letter.to, letter.room, letter.key))


def _bound_to(letter: Letter) -> bytes:
    return encode((_purpose(letter), letter.sequence))


def with_content(letter: Letter, keys: list[tuple[bytes, bytes]], sealed: bytes) -> Letter:
    """The letter with what it carries."""
    return msgspec.structs.replace(letter, keys=keys, sealed=sealed)
