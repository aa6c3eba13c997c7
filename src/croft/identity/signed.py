"""What a device of an owner signs for others to keep: the message, and the certificate that says whose device it is."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast

from croft.errors import PeerMisbehaved
from croft.identity.certificates import open_certificate
from croft.identity.keys import SecretKey
from croft.wire.codec import Message, decode, encode
from croft.wire.envelope import open_signed, sign


class OfDevice(Protocol):
    """A message that names its owner and the owner's device, by their public keys."""

    @property
    def owner(self) -> bytes: ...

    @property
    def device(self) -> bytes: ...


M = TypeVar("M", bound=OfDevice)


class SignedByDevice(Message, frozen=True):
    """A message, signed by a device, and the owner's certificate of that device."""

    certificate: bytes
    record: bytes


def sign_by_device(device: SecretKey, certificate: bytes, kind: str, message: Message) -> bytes:
    """The bytes of a message, as others keep them."""
    return encode(SignedByDevice(certificate, sign(device.signer, kind, message)))


def open_by_device(data: bytes, kind: str, of: type[M], *, bytes_max: int, what: str, step: str) -> M:
    """The message, whose every signature holds; `what` names it. Raises PeerMisbehaved."""
    if len(data) > bytes_max:
        raise PeerMisbehaved(f"{what} of {len(data)} bytes", step=step)
    signed = decode(data, SignedByDevice, step=step)
    certified = open_certificate(signed.certificate, step=step)
    signer, opened = open_signed(signed.record, kind, cast("type[Any]", of), step=step)
    message: M = opened
    if (signer, message.device.hex(), message.owner.hex()) != (certified.peer, certified.peer, certified.twin):
        raise PeerMisbehaved(f"{what} that was not signed by a device of its owner", step=step)
    return message
