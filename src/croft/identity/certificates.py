"""Certificates by which a twin says: this device is mine."""

from __future__ import annotations

from dataclasses import dataclass

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.model.ids import PeerId, TwinId, is_key_id
from croft.wire.codec import Message
from croft.wire.envelope import open_signed, sign

KIND = "device certificate"
NAME_LENGTH_MAX = 64


class DeviceCertificate(Message, frozen=True):
    """Signed by the twin. `serial` rises with each certificate of a device; `issued_at` in Unix seconds."""

    peer: str
    name: str
    issued_at: float
    serial: int = 1


@dataclass(frozen=True, slots=True)
class Certified:
    """What a valid certificate says."""

    peer: PeerId
    twin: TwinId
    name: str
    issued_at: float
    serial: int


def certify(twin: SecretKey, peer: PeerId, name: str, issued_at: float, serial: int = 1) -> bytes:
    """The twin's certificate of a device."""
    return sign(twin.signer, KIND, DeviceCertificate(peer, clean_name(name), issued_at, serial))


def open_certificate(data: bytes, *, step: str) -> Certified:
    """What the certificate says. Raises PeerMisbehaved if it is not valid."""
    signer, certificate = open_signed(data, KIND, DeviceCertificate, step=step)
    if not is_key_id(certificate.peer):
        raise PeerMisbehaved("a certificate of something that is no device id", step=step)
    return Certified(
        PeerId(certificate.peer),
        TwinId(signer),
        clean_name(certificate.name),
        certificate.issued_at,
        certificate.serial,
    )


def clean_name(name: str) -> str:
    """A name fit for a terminal: printable, no line ends, of bounded length."""
    shown = "".join(letter for letter in name if letter.isprintable()).strip()
    return shown[:NAME_LENGTH_MAX] or "nameless"
