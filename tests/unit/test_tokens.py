"""Tokens and chains of grants: what is believed, and what is not even evaluated."""

from __future__ import annotations

from datetime import datetime

import pytest
from biscuit_auth import Biscuit, BiscuitBuilder, BlockBuilder, PublicKey

from croft.errors import Refused
from croft.identity import tokens
from croft.identity.grants import CHAIN_LENGTH_MAX, admit, verify_chain
from croft.identity.tokens import EXPIRY, TokenExpired, TokenInvalid, make_token, read_token, token_date
from support.joining import ALICE, ALICES_CHAIN, BOB, CAROL, COMMUNITY, MALLORY, NOW, OTHER_COMMUNITY, ROOT, Somebody

FACTS = {"community": str, "member": str, "may_invite": bool, "expires": datetime}


def chain_to(*members: Somebody, may_invite: bool = True, expires_at: float = NOW + 10) -> list[bytes]:
    chain, inviter = list(ALICES_CHAIN), ALICE
    for member in members:
        chain = admit(inviter.twin_key, chain, COMMUNITY, member.twin, may_invite=may_invite, expires_at=expires_at)
        inviter = member
    return chain


def test_a_chain_proves_its_last_member() -> None:
    grant = verify_chain(COMMUNITY, chain_to(BOB, CAROL), CAROL.twin, NOW)
    assert (grant.twin, grant.may_invite, grant.expires_at) == (CAROL.twin, True, NOW + 10)


def test_every_flipped_bit_of_a_token_is_refused() -> None:
    chain = chain_to(BOB)
    refused = 0
    for at in range(len(chain[1]) * 8):
        changed = bytearray(chain[1])
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(Refused):
            verify_chain(COMMUNITY, [chain[0], bytes(changed)], BOB.twin, NOW)
        refused += 1
    assert refused > 2000


@pytest.mark.parametrize(
    ("community", "chain", "twin", "now"),
    [
        (OTHER_COMMUNITY, chain_to(BOB), BOB.twin, NOW),
        (COMMUNITY, chain_to(BOB), CAROL.twin, NOW),
        (COMMUNITY, chain_to(BOB), BOB.twin, NOW + 10),
        (COMMUNITY, chain_to(BOB)[1:], BOB.twin, NOW),
        (COMMUNITY, chain_to(BOB)[::-1], BOB.twin, NOW),
        (COMMUNITY, [], BOB.twin, NOW),
        (COMMUNITY, [*chain_to(BOB), *chain_to(CAROL)[1:]], CAROL.twin, NOW),
        (COMMUNITY, chain_to(BOB, CAROL, may_invite=False), CAROL.twin, NOW),
        (COMMUNITY, [b"", b""], BOB.twin, NOW),
        (COMMUNITY, [b"x" * 5000], BOB.twin, NOW),
    ],
)
def test_a_chain_that_proves_nothing_is_refused_with_a_remedy(
    community: str, chain: list[bytes], twin: str, now: float
) -> None:
    with pytest.raises(Refused) as caught:
        verify_chain(community, chain, twin, now)  # type: ignore[arg-type] # ids are strings here
    assert caught.value.remedy


def test_chains_have_a_longest_length() -> None:
    people = [Somebody(f"member {number}") for number in range(CHAIN_LENGTH_MAX)]
    longest = chain_to(*people[:-1])

    assert verify_chain(COMMUNITY, longest, people[-2].twin, NOW).twin == people[-2].twin
    with pytest.raises(Refused):
        admit(people[-2].twin_key, longest, COMMUNITY, people[-1].twin)
    with pytest.raises(Refused):
        verify_chain(COMMUNITY, [*longest, longest[-1]], people[-2].twin, NOW)


def signed(datalog: str) -> bytes:
    return bytes(BiscuitBuilder(datalog).build(tokens._private(ROOT.raw)).to_bytes())


@pytest.mark.parametrize(
    "datalog",
    [
        'community("a"); member($x) <- community($x); may_invite(true); expires(2030-01-01T00:00:00Z);',
        'community("a"); member("b"); may_invite(true); expires(2030-01-01T00:00:00Z); check if community("a");',
        'community("a"); member("b"); member("c"); may_invite(true); expires(2030-01-01T00:00:00Z);',
        'community("a"); member(7); may_invite(true); expires(2030-01-01T00:00:00Z);',
        'community("a"); member("b"); may_invite("true"); expires(2030-01-01T00:00:00Z);',
        'community("a"); member("b"); may_invite(true);',
        'community("a"); member("b", "c"); may_invite(true); expires(2030-01-01T00:00:00Z);',
        "",
    ],
)
def test_a_well_signed_token_of_another_form_is_not_believed(datalog: str) -> None:
    with pytest.raises(TokenInvalid):
        read_token(signed(datalog), ROOT.public, FACTS, NOW)


def test_a_token_of_our_form_is_believed_until_it_expires() -> None:
    token = make_token(ROOT, 'community("a");' + EXPIRY, {"expiry": token_date(NOW + 5.5)})

    assert read_token(token, ROOT.public, {"community": str}, NOW + 5) == ["a"]
    assert read_token(token, ROOT.public, {"community": str}) == ["a"]
    with pytest.raises(TokenExpired):
        read_token(token, ROOT.public, {"community": str}, NOW + 6)
    with pytest.raises(TokenInvalid):
        read_token(token, MALLORY.twin, {"community": str}, NOW)


def test_a_token_that_somebody_added_to_is_not_evaluated() -> None:
    token = make_token(ROOT, 'community("a");', {})
    biscuit = Biscuit.from_bytes(token, tokens._public(bytes.fromhex(ROOT.public)))
    longer = bytes(biscuit.append(BlockBuilder("check if true;")).to_bytes())

    with pytest.raises(TokenInvalid, match="more than facts"):
        read_token(longer, ROOT.public, {"community": str}, NOW)


def test_evaluation_has_time_on_a_busy_machine() -> None:
    builder = tokens._patient("allow if true;")
    assert builder.limits().max_time == tokens.EVALUATION_MAX  # type: ignore[attr-defined] # the stubs lag behind
    assert tokens.EVALUATION_MAX.total_seconds() >= 1
    assert isinstance(tokens._public(bytes.fromhex(ROOT.public)), PublicKey)
