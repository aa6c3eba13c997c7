"""Capabilities: what a twin can do for others, with name, signature, text and terms; signed by a device, as records.

A record stands for itself, as an offer does: it carries the certificate and the grant by which anybody in the community
checks that a member made it. It expires and is renewed while it stands. Sans-IO.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import msgspec
from blake3 import blake3

from croft.errors import PeerMisbehaved, Usage
from croft.identity.by_member import Signatory, open_by_member
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id
from croft.twins.capability_schema import Checker, describe, open_schema
from croft.wire.codec import Message
from croft.wire.envelope import sign

CAPABILITY_KIND: Final = "capability"
LIFETIME_S: Final = 3_600.0
RENEW_EVERY_S: Final = 1_200.0
LIFETIME_S_MAX: Final = 86_400.0
NAME_CHARS_MAX: Final = 64
TEXT_CHARS_MAX: Final = 4_000
EXAMPLES_MAX: Final = 8
EXAMPLE_CHARS_MAX: Final = 500
NEEDS_MAX: Final = 16
NEED_CHARS_MAX: Final = 32
TWINS_MAX: Final = 64
PRICE_MAX: Final = 1e9
SLOTS_MAX: Final = 64
DIGEST_BYTES: Final = 16
STEP: Final = "capability"

_NAME = re.compile(r"[a-z][a-z0-9_]*(?:-[a-z0-9_]+)*", re.ASCII)


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes in and what comes out, as JSON Schema.

    Attributes:
        parameters: an object; its properties are in the order in which positional arguments are bound.
        returns: of the result, or of each item if it `streams`. stream_in: the parameter that is an iterator, or empty.
    """

    parameters: dict[str, Any]
    returns: dict[str, Any] = {}
    streams: bool = False
    stream_in: str = ""


class Terms(Message, frozen=True):
    """What a capability is, for whoever calls it.

    Attributes:
        name: what it is called by. signature: JSON of a `Signature`. text: what it does. examples: calls as people
        write them. needs: what it uses of its machine. price: favours per call. is_idempotent: whether a call may be
        made twice. time_s_max: how long one call may take. slots: how many run at a time.
    """

    name: str
    signature: bytes
    text: str = ""
    examples: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    price: float = 0.0
    is_idempotent: bool = False
    time_s_max: float = 600.0
    slots: int = 1

    @property
    def digest(self) -> bytes:
        """Of the signature: two capabilities of one name may stand in for each other only if it is the same."""
        return blake3(self.signature).digest(length=DIGEST_BYTES)


class CapabilityContent(Message, frozen=True):
    """The signed content of a record. `to`: the twins for whom it is; empty: all members. `sequence`: the highest wins;
    `expires_at`: Unix seconds."""

    community: str
    grant_chain: list[bytes]
    certificate: bytes
    terms: Terms
    sequence: int
    expires_at: float
    to: tuple[str, ...] = ()
    is_withdrawn: bool = False


@dataclass(frozen=True)
class Capability:
    """A capability of somebody, whose every part holds."""

    community: CommunityId
    peer: PeerId
    twin: TwinId
    terms: Terms
    sequence: int
    expires_at: float
    to: tuple[str, ...] = ()
    is_withdrawn: bool = False
    signature: Signature = field(default_factory=lambda: Signature(parameters={}))

    @property
    def key(self) -> str:
        """One per device and name: the newest counts."""
        return f"{self.peer}/{self.terms.name}"

    def is_for(self, twin: TwinId) -> bool:
        """Whether somebody in its community is meant; its owner always is."""
        return not self.to or twin in self.to or twin == self.twin

    @cached_property
    def checker(self) -> Checker:
        """Of its arguments."""
        return Checker(self.signature.parameters)


def check_name(name: str) -> str:
    """Returns a name that a capability may have. Raises Usage."""
    if len(name) > NAME_CHARS_MAX or _NAME.fullmatch(name) is None:
        raise Usage(
            f"`{name[:NAME_CHARS_MAX]}` is no name for a capability",
            remedy="Use small letters, digits, `_` and `-`, and begin with a letter; see `--name`.",
        )
    return name


def open_signature(data: bytes) -> Signature:
    """What a signature says. Raises PeerMisbehaved if it is none, or out of all proportion."""
    schema = open_schema(data)
    try:
        signature = msgspec.convert(schema, Signature)
    except msgspec.ValidationError as error:
        raise PeerMisbehaved(f"not a signature: {error}", step=STEP) from None
    fields = signature.parameters.get("properties", {})
    if not isinstance(fields, dict) or not all(isinstance(name, str) and name.isidentifier() for name in fields):
        raise PeerMisbehaved("parameters without proper names", step=STEP)
    if signature.stream_in and signature.stream_in not in fields:
        raise PeerMisbehaved("a stream into a parameter that is not there", step=STEP)
    return signature


def show_signature(name: str, signature: Signature) -> str:
    """As people write it: `transcribe(page: Path, language: str = …) -> str`."""
    required = signature.parameters.get("required", [])
    shown = []
    for one, schema in signature.parameters.get("properties", {}).items():
        kind = describe(schema)
        if one == signature.stream_in:
            shown.append(f"{one}: Iterator[{kind}]")
            continue
        default = schema.get("default", "…") if isinstance(schema, dict) else "…"
        shown.append(f"{one}: {kind}" + ("" if one in required else f" = {default!r}" if default != "…" else " = …"))
    returns = describe(signature.returns)
    return f"{name}({', '.join(shown)}) -> {f'Iterator[{returns}]' if signature.streams else returns}"


def make_capability(
    signatory: Signatory, terms: Terms, to: Sequence[str], *, is_withdrawn: bool, now: float, sequence: int
) -> bytes:
    """The record of a capability that is good for LIFETIME_S, or of its end."""
    content = CapabilityContent(
        signatory.community,
        list(signatory.grant_chain),
        signatory.certificate,
        terms,
        sequence,
        now + LIFETIME_S,
        tuple(to)[:TWINS_MAX],
        is_withdrawn,
    )
    return sign(signatory.device.signer, CAPABILITY_KIND, content)


def open_capability(community: CommunityId, record: bytes, now: float) -> Capability:
    """What a record says to `community`. Raises PeerMisbehaved unless every part of it holds."""
    certified, content = open_by_member(
        record, CAPABILITY_KIND, CapabilityContent, community, now, what="a capability", lifetime_s_max=LIFETIME_S_MAX
    )
    if len(content.to) > TWINS_MAX or not all(map(is_key_id, content.to)):
        raise PeerMisbehaved("a capability for impossible people", step=STEP)
    signature = check_terms(content.terms)
    return Capability(
        community,
        certified.peer,
        certified.twin,
        content.terms,
        content.sequence,
        content.expires_at,
        tuple(content.to),
        content.is_withdrawn,
        signature,
    )


def check_terms(terms: Terms) -> Signature:
    """The signature in terms that somebody sent. Raises PeerMisbehaved unless all is within bounds."""
    try:
        check_name(terms.name)
    except Usage as error:
        raise PeerMisbehaved(error.message, step=STEP) from None
    if len(terms.text) > TEXT_CHARS_MAX or len(terms.examples) > EXAMPLES_MAX or len(terms.needs) > NEEDS_MAX:
        raise PeerMisbehaved("more text, examples or needs than anybody reads", step=STEP)
    if any(len(one) > EXAMPLE_CHARS_MAX for one in terms.examples):
        raise PeerMisbehaved("an example that is too long", step=STEP)
    if not all(0 < len(one) <= NEED_CHARS_MAX and one.isprintable() for one in terms.needs):
        raise PeerMisbehaved("needs something without a proper name", step=STEP)
    if not 0 <= terms.price <= PRICE_MAX or not 0 < terms.time_s_max <= LIFETIME_S_MAX:
        raise PeerMisbehaved("an impossible price or time", step=STEP)
    if not 1 <= terms.slots <= SLOTS_MAX:
        raise PeerMisbehaved("an impossible number of calls at a time", step=STEP)
    return open_signature(terms.signature)
