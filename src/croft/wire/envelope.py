"""Signed records: a message, who signed it, and what for. One flipped bit, and it is refused.

The signature (Ed25519, RFC 8032) covers a BLAKE3 key-derivation digest over the record's kind and payload, so that
what was signed for one purpose can never pass for another.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from croft.errors import PeerMisbehaved
from croft.wire.codec import Message, decode, encode

M = TypeVar("M")

CONTEXT = "croft signed record v1"
RECORD_BYTES_MAX = 64 << 10
SIGNATURE_BYTES = 64
KEY_BYTES = 32
SIGNATURES_KEPT = 1024
"""Valid ones that are remembered: the same certificate comes with each descriptor and each hello of a device."""


class SignedRecord(Message, frozen=True):
    """A payload and its signature by `signer`, an Ed25519 public key."""

    signer: bytes
    kind: str
    payload: bytes
    signature: bytes


def sign(key: Ed25519PrivateKey, kind: str, message: Message) -> bytes:
    """The bytes of a record of `kind` that carries `message`."""
    payload = encode(message)
    signer = key.public_key().public_bytes_raw()
    return encode(SignedRecord(signer, kind, payload, key.sign(_digest(kind, payload))))


def open_signed(data: bytes, kind: str, message: type[M], *, step: str) -> tuple[str, M]:
    """The signer's key in hex, and the message. Raises PeerMisbehaved unless every bit is as it was signed."""
    if len(data) > RECORD_BYTES_MAX:
        raise PeerMisbehaved(f"record of {len(data)} bytes, limit is {RECORD_BYTES_MAX}", step=step)
    record = decode(data, SignedRecord, step=step)
    if record.kind != kind:
        raise PeerMisbehaved(f"a record of kind {record.kind[:40]!r} where {kind!r} belongs", step=step)
    if len(record.signer) != KEY_BYTES or len(record.signature) != SIGNATURE_BYTES:
        raise PeerMisbehaved("a record with a key or signature of the wrong length", step=step)
    try:
        _verify(record.signer, record.signature, _digest(kind, record.payload))
    except (InvalidSignature, ValueError):
        raise PeerMisbehaved(f"the signature of a record of kind {kind!r} is wrong", step=step) from None
    return record.signer.hex(), decode(record.payload, message, step=step)


@lru_cache(SIGNATURES_KEPT)
def _verify(signer: bytes, signature: bytes, digest: bytes) -> None:
    """Raises InvalidSignature, ValueError; what is raised is not remembered."""
    Ed25519PublicKey.from_public_bytes(signer).verify(signature, digest)


def _digest(kind: str, payload: bytes) -> bytes:
    return blake3(encode((kind, payload)), derive_key_context=CONTEXT).digest()
