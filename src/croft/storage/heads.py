"""Heads: what each device of an owner last knew of the owner's files, signed, and sealed against everybody else."""

from __future__ import annotations

from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.identity.signed import open_by_device, sign_by_device
from croft.storage.formats import Head, Root, decode_stored
from croft.storage.sealing import NONCE_BYTES, TAG_BYTES, damaged, derive
from croft.wire.codec import encode

HEAD_KIND: Final = "storage.head"
HEAD_BYTES_MAX: Final = 80 << 10
SEQUENCE_MAX: Final = 1 << 53
STEP: Final = "storage head"
HEAD_IS_OLD: Final = "a newer list of files of this device is here already"


def sign_head(device: SecretKey, certificate: bytes, head: Head) -> bytes:
    """The bytes of a head, as holders keep them."""
    return sign_by_device(device, certificate, HEAD_KIND, head)


def open_head(data: bytes) -> Head:
    """The head, whose every signature holds. Raises PeerMisbehaved; Failed for one of a newer format."""
    head = open_by_device(data, HEAD_KIND, Head, bytes_max=HEAD_BYTES_MAX, what="a head", step=STEP)
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
