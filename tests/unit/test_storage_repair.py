"""Which shares are made again, and who may do what with somebody's shares."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from croft.errors import CroftError, PeerMisbehaved, Refused
from croft.identity.certificates import certify
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.storage.permits import Permit, bearers, check_permit, sign_permit
from croft.storage.repair import GRACE_S, SHORT_GRACE_S, Rebuild, StripeState, plan

HOUR_S = 3_600.0


def state(number: int, k: int, n: int, present: int, away_s: float = 0.0) -> StripeState:
    away = dict.fromkeys(range(present, n), away_s) if away_s else {}
    return StripeState(number, k, n, {index: [PeerId(f"p{index}")] for index in range(present)}, away)


def test_the_most_endangered_stripe_comes_first() -> None:
    states = [state(0, 4, 8, 6), state(1, 4, 8, 4), state(2, 4, 8, 8), state(3, 4, 8, 5)]

    assert plan(states) == [Rebuild(1, (4, 5, 6, 7)), Rebuild(3, (5, 6, 7)), Rebuild(0, (6, 7))]


@pytest.mark.parametrize(("present", "waits_s"), [(7, GRACE_S), (6, SHORT_GRACE_S), (5, 0.0), (4, 0.0)])
def test_the_less_a_stripe_bears_yet_the_shorter_are_its_holders_waited_for(present: int, waits_s: float) -> None:
    missing = tuple(range(present, 8))

    assert plan([state(0, 4, 8, present, away_s=max(1.0, waits_s))]) == [Rebuild(0, missing)]
    assert waits_s == 0 or plan([state(0, 4, 8, present, away_s=waits_s - 1)]) == []


def test_a_share_that_its_holder_denies_is_made_again_at_once() -> None:
    assert plan([state(0, 4, 8, 7)]) == [Rebuild(0, (7,))]


def test_what_cannot_be_read_now_cannot_be_mended() -> None:
    assert plan([state(0, 4, 8, 3)]) == []


# --- permits ---------------------------------------------------------------------------------------------------------


@dataclass
class Bearer:
    peer: PeerId
    twin: TwinId
    communities: frozenset[CommunityId] = frozenset()


KEYS = [SecretKey(Random(seed).randbytes(32)) for seed in range(6)]
TWIN, DEVICE, DELEGATE, READER, CIRCLE, OTHER = KEYS
OWNER = bytes.fromhex(TWIN.public)
CERTIFICATE = certify(TWIN, PeerId(DEVICE.public), "ada", 1.0)


def raw(key: SecretKey) -> bytes:
    return bytes.fromhex(key.public)


def permit(signer: SecretKey = DEVICE, owner: bytes = OWNER, may_put: bool = True) -> bytes:
    content = Permit(owner, raw(signer), [raw(DELEGATE)], [raw(READER)], [raw(CIRCLE)], may_put, HOUR_S)
    return sign_permit(signer, CERTIFICATE, content)


AS_DELEGATE = Bearer(PeerId(DELEGATE.public), TwinId(OTHER.public))
AS_READER = Bearer(PeerId(OTHER.public), TwinId(READER.public))
AS_MEMBER = Bearer(PeerId(OTHER.public), TwinId(OTHER.public), frozenset([CommunityId(CIRCLE.public)]))
AS_NOBODY = Bearer(PeerId(OTHER.public), TwinId(OTHER.public))


def test_a_permit_lets_whom_it_names_do_what_it_says() -> None:
    check_permit(permit(), OWNER, AS_DELEGATE, 0.0, puts=True)
    for bearer in (AS_DELEGATE, AS_READER, AS_MEMBER):
        check_permit(permit(), OWNER, bearer, 0.0, puts=False)
    assert bearers(permit()) == [DELEGATE.public]


@pytest.mark.parametrize(
    ("data", "owner", "bearer", "now", "puts"),
    [
        (b"", OWNER, AS_DELEGATE, 0.0, False),
        (permit(), OWNER, AS_NOBODY, 0.0, False),
        (permit(), OWNER, AS_READER, 0.0, True),
        (permit(may_put=False), OWNER, AS_DELEGATE, 0.0, True),
        (permit(), OWNER, AS_DELEGATE, 2 * HOUR_S, False),
        (permit(), raw(OTHER), AS_DELEGATE, 0.0, False),
        (permit(signer=OTHER), OWNER, AS_DELEGATE, 0.0, True),
        (permit(owner=raw(OTHER)), raw(OTHER), AS_DELEGATE, 0.0, True),
        (permit()[:-1], OWNER, AS_DELEGATE, 0.0, True),
        (permit().replace(raw(DELEGATE), raw(OTHER)), OWNER, AS_NOBODY, 0.0, True),
    ],
    ids=["none", "nobody", "reader puts", "no put", "expired", "others", "forged", "strange", "cut", "edited"],
)
def test_a_permit_lets_nobody_do_anything_else(
    data: bytes, owner: bytes, bearer: Bearer, now: float, puts: bool
) -> None:
    with pytest.raises((Refused, PeerMisbehaved)) as refusal:
        check_permit(data, owner, bearer, now, puts=puts)
    assert not isinstance(refusal.value, CroftError) or refusal.value.message
