"""Operations: what people did in a community, each signed by its author's twin key and naming what its author knew of.

An operation's id is the hash of who signed what, so parents form a graph without cycles that nobody can rewrite (a
Merkle DAG). Wire format: docs/specs/community.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from croft.errors import PeerMisbehaved, Refused
from croft.identity.grants import CHAIN_LENGTH_MAX, verify_chain
from croft.model.ids import CommunityId, TwinId, is_key_id
from croft.wire.codec import Message, decode, encode
from croft.wire.envelope import SignedRecord, open_signed, sign

if TYPE_CHECKING:
    from croft.identity.keys import SecretKey

KIND: Final = "community operation"
STEP: Final = "community operation"
ID_CONTEXT: Final = "croft community operation id v1"
ID_BYTES: Final = 32
OPERATION_BYTES_MAX: Final = 8 << 10
PARENTS_MAX: Final = 16
WORD_CHARS_MAX: Final = 16
SUBJECT_CHARS_MAX: Final = 64
VALUE_CHARS_MAX: Final = 512
SEQUENCE_MAX: Final = 1 << 40

CREATE: Final = "create"
ADMIT: Final = "admit"
ROLE: Final = "role"
REMOVE: Final = "remove"
RULE: Final = "rule"
LEAVE: Final = "leave"

FOUNDER: Final = "founder"
ADMIN: Final = "admin"
MEMBER: Final = "member"
GUEST: Final = "guest"
ROLES_GIVEN: Final = (ADMIN, MEMBER, GUEST)

ABOUT_SOMEBODY: Final = (CREATE, ADMIT, ROLE, REMOVE, LEAVE)


class Operation(Message, frozen=True):
    """Signed by the author's twin key; `create` by the community's root key.

    `sequence` counts the author's own, from 0; `parents`: ids, ascending, of the newest that the author knew. `subject`
    is the twin, or the rule, that the act is about; `value` the role, the rule's value, the community's name, or what a
    newcomer calls itself. `at`: Unix seconds, for people to read. `chain`: the author's grant, where no operation among
    the parents' ancestors admits the author.
    """

    community: str
    sequence: int
    parents: list[bytes]
    act: str
    subject: str
    value: str
    at: float
    chain: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """A verified operation: its id, who signed it, and who let the author in if it carries the author's grant."""

    id: bytes
    author: TwinId
    operation: Operation
    record: bytes
    path: tuple[TwinId, ...] = ()


def write_operation(key: SecretKey, operation: Operation) -> bytes:
    """The bytes of an operation, signed."""
    return sign(key.signer, KIND, operation)


def open_operation(record: bytes, community: CommunityId) -> Signed:
    """Checks all that can be checked of an operation by itself. Raises PeerMisbehaved."""
    if len(record) > OPERATION_BYTES_MAX:
        raise PeerMisbehaved(f"{len(record)} bytes, the limit is {OPERATION_BYTES_MAX}", step=STEP)
    author, operation = open_signed(record, KIND, Operation, step=STEP)
    _check(operation, community)
    path: tuple[TwinId, ...] = ()
    if operation.chain:
        try:
            # Judged by the author's own time: whether an operation is valid must not hang on when it arrives.
            path = verify_chain(community, operation.chain, TwinId(author), operation.at).path
        except Refused as refusal:
            raise PeerMisbehaved(f"by {refusal.message}", step=STEP) from None
    return Signed(_id_of(record), TwinId(author), operation, record, path)


def reopen_operation(record: bytes, community: CommunityId) -> Signed:
    """An operation that was verified before and kept since. Raises PeerMisbehaved if it cannot be read."""
    signed = decode(record, SignedRecord, step=STEP)
    operation = decode(signed.payload, Operation, step=STEP)
    author = TwinId(signed.signer.hex())
    path = verify_chain(community, operation.chain, author, operation.at).path if operation.chain else ()
    return Signed(_id_of(record), author, operation, record, path)


def is_fit(text: str, chars_max: int = VALUE_CHARS_MAX) -> bool:
    """Whether a text may stand in an operation."""
    return len(text) <= chars_max and text.isprintable()


def _id_of(record: bytes) -> bytes:
    # Not over the signature or its wrapping, of which others could make a second one that is valid too.
    signed = decode(record, SignedRecord, step=STEP)
    return blake3(encode((signed.signer, signed.payload)), derive_key_context=ID_CONTEXT).digest()


def _check(operation: Operation, community: CommunityId) -> None:
    parents: Sequence[bytes] = operation.parents
    if operation.community != community:
        raise PeerMisbehaved("of another community", step=STEP)
    if len(parents) > PARENTS_MAX or any(len(one) != ID_BYTES for one in parents):
        raise PeerMisbehaved(f"{len(parents)} parents, or one that is no id", step=STEP)
    if any(one >= other for one, other in itertools.pairwise(parents)):
        raise PeerMisbehaved("its parents are not in order, or named twice", step=STEP)
    if not 0 <= operation.sequence <= SEQUENCE_MAX or not math.isfinite(operation.at):
        raise PeerMisbehaved("an impossible number or time", step=STEP)
    if not is_fit(operation.act, WORD_CHARS_MAX) or not is_fit(operation.subject, SUBJECT_CHARS_MAX):
        raise PeerMisbehaved("an act or a subject that is too long or unprintable", step=STEP)
    if not is_fit(operation.value):
        raise PeerMisbehaved("a value that is too long or unprintable", step=STEP)
    if operation.act in ABOUT_SOMEBODY and not is_key_id(operation.subject):
        raise PeerMisbehaved(f"`{operation.act}` of nobody", step=STEP)
    if operation.act == ROLE and operation.value not in ROLES_GIVEN:
        raise PeerMisbehaved(f"a role `{operation.value[:20]}`", step=STEP)
    if len(operation.chain) > CHAIN_LENGTH_MAX:
        raise PeerMisbehaved("a grant that is too long", step=STEP)
