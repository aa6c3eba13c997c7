"""Heads: what each device of an owner last knew of the owner's files, signed, and sealed against everybody else."""

from __future__ import annotations

from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from croft.errors import PeerMisbehaved
from croft.identity.certificates import open_certificate
from croft.identity.keys import SecretKey
from croft.storage.formats import FORMAT, Head, Root, decode_stored
from croft.storage.sealing import NONCE_BYTES, TAG_BYTES, damaged, derive
from croft.wire.codec import Message, decode, encode
from croft.wire.envelope import open_signed, sign

HEAD_KIND: Final = "storage.head"
HEAD_BYTES_MAX: Final = 80 << 10
ROOT_BYTES_MAX: Final = 48 << 10
SEQUENCE_MAX: Final = 1 << 53
STEP: Final = "storage head"


class SignedHead(Message, frozen=True):
    """A head, signed by the device, and the owner's certificate of that device."""

    certificate: bytes
    record: bytes


def sign_head(device: SecretKey, certificate: bytes, head: Head) -> bytes:
    """The bytes of a head, as holders keep them."""
    return encode(SignedHead(certificate, sign(device.signer, HEAD_KIND, head)))


def open_head(data: bytes) -> Head:
    """The head, whose every signature holds. Raises PeerMisbehaved; Failed for one of a newer format."""
    if len(data) > HEAD_BYTES_MAX:
        raise PeerMisbehaved(f"a head of {len(data)} bytes", step=STEP)
    signed = decode(data, SignedHead, step=STEP)
    certified = open_certificate(signed.certificate, step=STEP)
    signer, head = open_signed(signed.record, HEAD_KIND, Head, step=STEP)
    if (signer, head.device.hex(), head.owner.hex()) != (certified.peer, certified.peer, certified.twin):
        raise PeerMisbehaved("a head that was not signed by a device of its owner", step=STEP)
    if not 0 < head.sequence <= SEQUENCE_MAX:
        raise PeerMisbehaved("a head with an impossible number", step=STEP)
    return head


def digest(data: bytes) -> bytes:
    """What the next head of the device calls this one."""
    return blake3(data, derive_key_context="croft storage v1 head digest").digest()


def seal_root(secret: bytes, root: Root, nonce: bytes) -> bytes:
    """A root as only the owner reads it. `nonce`: random, of NONCE_BYTES."""
    return nonce + AESGCM(derive(secret, "head")).encrypt(nonce, encode(root), None)


def open_root(secret: bytes, sealed: bytes) -> Root:
    """What was sealed. Raises Failed."""
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise damaged()
    try:
        plain = AESGCM(derive(secret, "head")).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except InvalidTag:
        raise damaged() from None
    return decode_stored(plain, Root)


EMPTY: Final = Root(FORMAT, [])
