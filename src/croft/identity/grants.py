"""Membership grants: Biscuit tokens, each signed by whoever admitted the next member, back to the community's key.

A member shows its chain; anybody checks it offline. The first token is signed by the community's root key and names
the first member; each further one is signed by the twin key of the member before it. Source: Eclipse Biscuit 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from croft.errors import Refused
from croft.identity.keys import SecretKey
from croft.identity.tokens import EXPIRY, TokenExpired, TokenInvalid, make_token, read_token, token_date
from croft.model.ids import CommunityId, TwinId, is_key_id

CHAIN_LENGTH_MAX = 8
FOREVER = 253402300799.0
"""The last second of the year 9999."""
REMEDY = "Ask a member for a new invitation: `croft invite`."


@dataclass(frozen=True, slots=True)
class Grant:
    """What a chain proves. `path` is who let whom in, from the founder to this twin."""

    community: CommunityId
    twin: TwinId
    may_invite: bool
    expires_at: float
    path: tuple[TwinId, ...] = ()


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
    check_may_admit(chain)
    return [*chain, _token(inviter, community, newcomer, may_invite=may_invite, expires_at=expires_at)]


def check_may_admit(chain: Sequence[bytes]) -> None:
    """Raises Refused if a newcomer's chain would grow too long."""
    if len(chain) >= CHAIN_LENGTH_MAX:
        raise Refused(
            f"this member stands {len(chain) - 1} invitations from the founder and cannot invite",
            remedy="Let a member who came earlier invite.",
        )


def verify_chain(community: CommunityId, chain: Sequence[bytes], twin: TwinId, now: float) -> Grant:
    """The grant that `chain` proves for `twin`. Raises Refused with what is wrong with it."""
    if not 0 < len(chain) <= CHAIN_LENGTH_MAX:
        raise Refused(f"a membership of {len(chain)} tokens", remedy=REMEDY)
    signer = str(community)
    expires_at = FOREVER
    grant: Grant | None = None
    path: list[TwinId] = []
    for position, token in enumerate(chain):
        grant = _verify(community, token, signer, now)
        expires_at = min(expires_at, grant.expires_at)
        if position < len(chain) - 1 and not grant.may_invite:
            raise Refused("a membership given by one who may not invite", remedy=REMEDY)
        signer = grant.twin
        path.append(grant.twin)
    assert grant is not None, "the chain is not empty"
    if grant.twin != twin:
        raise Refused("a membership that was given to somebody else", remedy=REMEDY)
    return Grant(community, twin, grant.may_invite, expires_at, tuple(path))


def _token(key: SecretKey, community: CommunityId, twin: TwinId, *, may_invite: bool, expires_at: float) -> bytes:
    return make_token(
        key,
        "community({community}); member({twin}); may_invite({may}); expires({expiry});" + EXPIRY,
        {"community": community, "twin": twin, "may": may_invite, "expiry": token_date(min(expires_at, FOREVER))},
    )


def _verify(community: CommunityId, token: bytes, signer: str, now: float) -> Grant:
    facts = {"community": str, "member": str, "may_invite": bool, "expires": datetime}
    try:
        named, twin, may_invite, expires_at = read_token(token, signer, facts, now)
    except TokenExpired:
        raise Refused("a membership that has expired", remedy=REMEDY) from None
    except TokenInvalid:
        raise Refused("a membership that is damaged or forged", remedy=REMEDY) from None
    if named != community:
        raise Refused("a membership of another community", remedy=REMEDY)
    if not is_key_id(twin):
        raise Refused("a membership that does not say for whom", remedy=REMEDY)
    return Grant(community, TwinId(twin), may_invite, expires_at.timestamp())
