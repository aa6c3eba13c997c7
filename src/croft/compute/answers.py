"""What peers say came of copies of a task whose result is to be verified, and what two of them must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from croft.compute.worker_messages import RemoteException, Status
from croft.errors import PeerMisbehaved
from croft.model.ids import PeerId
from croft.wire.codec import decode, encode


@dataclass(frozen=True, slots=True)
class CopiedCall:
    """A task whose result is to be verified: what its copies are."""

    function: bytes
    arguments: bytes
    needs: list[bytes]
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer says came of a copy."""

    peer: PeerId
    status: int
    payload: bytes
    parts: list[bytes]


def answer_digest(status: int, payload: bytes, parts: Sequence[bytes]) -> bytes:
    """What two answers must have in common. Of failures, what does not depend on where they happened."""
    if status == Status.RAISED:
        try:
            raised = decode(payload, RemoteException, step="task results")
        except PeerMisbehaved:
            return payload
        return blake3(encode((raised.module, raised.name, raised.message))).digest()
    if status != Status.OK:
        return b""
    hasher = blake3()
    for part in (*parts, payload):
        hasher.update(part)
    return hasher.digest()
