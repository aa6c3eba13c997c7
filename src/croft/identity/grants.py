"""Membership grants: Biscuit tokens, each signed by whoever admitted the next member, back to the community's key.

A member shows its chain; anybody checks it offline. The first token is signed by the community's root key and names
the first member; each further one is signed by the twin key of the member before it. Source: Eclipse Biscuit 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from biscuit_auth import (
    Algorithm,
    AuthorizerBuilder,
    Biscuit,
    BiscuitBuilder,
    BiscuitValidationError,
    DataLogError,
    PrivateKey,
    PublicKey,
    Rule,
)
from biscuit_auth import AuthorizationError as BiscuitRefused

from croft.errors import Refused
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, TwinId

CHAIN_LENGTH_MAX = 8
TOKEN_BYTES_MAX = 2048
FOREVER = 253402300799.0
"""The last second of the year 9999."""
REMEDY = "Ask a member for a new invitation: `croft invite`."


@dataclass(frozen=True, slots=True)
class Grant:
    """What a chain proves."""

    community: CommunityId
    twin: TwinId
    may_invite: bool
    expires_at: float


def found(root: SecretKey, founder: TwinId) -> list[bytes]:
    """The chain of a community's founder."""
    return [_token(root, CommunityId(root.public), founder, may_invite=True, expires_at=FOREVER)]


def admit(
    inviter: SecretKey,
    chain: Sequence[bytes],
    community: CommunityId,
    newcomer: TwinId,
    *,
    may_invite: bool = True,
    expires_at: float = FOREVER,
) -> list[bytes]:
    """The chain of a newcomer, by a member's twin key and chain. Raises Refused if the chain would grow too long."""
    if len(chain) >= CHAIN_LENGTH_MAX:
        raise Refused(
            f"this member stands {len(chain)} invitations from the founder and cannot invite",
            remedy="Let a member who came earlier invite.",
        )
    return [*chain, _token(inviter, community, newcomer, may_invite=may_invite, expires_at=expires_at)]


def verify_chain(community: CommunityId, chain: Sequence[bytes], twin: TwinId, now: float) -> Grant:
    """The grant that `chain` proves for `twin`. Raises Refused with what is wrong with it."""
    if not 0 < len(chain) <= CHAIN_LENGTH_MAX:
        raise Refused(f"a membership of {len(chain)} tokens", remedy=REMEDY)
    signer = str(community)
    expires_at = FOREVER
    grant: Grant | None = None
    for position, token in enumerate(chain):
        grant = _verify(community, token, signer, now)
        expires_at = min(expires_at, grant.expires_at)
        if position < len(chain) - 1 and not grant.may_invite:
            raise Refused("a membership given by one who may not invite", remedy=REMEDY)
        signer = grant.twin
    assert grant is not None, "the chain is not empty"
    if grant.twin != twin:
        raise Refused("a membership that was given to somebody else", remedy=REMEDY)
    return Grant(community, twin, grant.may_invite, expires_at)


def _token(key: SecretKey, community: CommunityId, twin: TwinId, *, may_invite: bool, expires_at: float) -> bytes:
    builder = BiscuitBuilder(
        "community({community}); member({twin}); may_invite({may}); expires({at}); check if time($t), $t < {at};",
        {"community": community, "twin": twin, "may": may_invite, "at": _date(expires_at)},
    )
    token: bytes = bytes(builder.build(_private(key.raw)).to_bytes())
    return token


def _verify(community: CommunityId, token: bytes, signer: str, now: float) -> Grant:
    if len(token) > TOKEN_BYTES_MAX:
        raise Refused(f"a membership token of {len(token)} bytes", remedy=REMEDY)
    try:
        biscuit = Biscuit.from_bytes(token, _public(bytes.fromhex(signer)))
        authorizer = AuthorizerBuilder(
            "time({now}); allow if community({community});",
            {
                "now": _date(now),
                "community": community,
            },
        ).build(biscuit)
        authorizer.authorize()
        rule = "grant($twin, $may, $at) <- member($twin), may_invite($may), expires($at)"
        facts: list[Any] = authorizer.query(Rule(rule))
    except BiscuitRefused:
        raise Refused("a membership that has expired, or is of another community", remedy=REMEDY) from None
    except (BiscuitValidationError, DataLogError, ValueError):
        raise Refused("a membership that is damaged or forged", remedy=REMEDY) from None
    if len(facts) != 1:
        raise Refused("a membership that does not say for whom", remedy=REMEDY)
    twin, may_invite, expires_at = facts[0].terms
    return Grant(community, TwinId(twin), may_invite, expires_at.timestamp())


# The stubs of the wheel lag behind it: they know neither the second argument nor the algorithm's name.
_ED25519: Any = Algorithm.Ed25519  # type: ignore[attr-defined]


def _private(raw: bytes) -> PrivateKey:
    return PrivateKey.from_bytes(raw, _ED25519)  # type: ignore[call-arg]


def _public(raw: bytes) -> PublicKey:
    return PublicKey.from_bytes(raw, _ED25519)  # type: ignore[call-arg]


def _date(at: float) -> datetime:
    return datetime.fromtimestamp(min(at, FOREVER), UTC)
