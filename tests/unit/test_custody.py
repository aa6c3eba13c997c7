"""Who carries a job on: the submitter while it is up, then one delegate, in an order on which all agree."""

from __future__ import annotations

import pytest

from croft.compute.custody import STAGGER_S, TAKEOVER_S, Carry, ClaimHeard, Custody, Follow, Looked
from croft.errors import PeerMisbehaved
from croft.model.ids import PeerId

SUE, DAN, DEB = PeerId("sue"), PeerId("dan"), PeerId("deb")
HOLDERS = [SUE, DAN, DEB]


def held_by(own: PeerId) -> Custody:
    custody = Custody(own, HOLDERS, 1, SUE)
    custody.handle(Looked(0.0, frozenset(HOLDERS)))
    return custody


def test_nobody_takes_over_while_the_submitter_lives() -> None:
    for own in HOLDERS:
        custody = held_by(own)
        assert not [custody.handle(Looked(now, frozenset(HOLDERS))) for now in (100.0, 200.0)][-1]


def test_the_first_delegate_takes_over_and_the_second_leaves_it_its_turn() -> None:
    dan, deb = held_by(DAN), held_by(DEB)
    left = frozenset([DAN, DEB])

    assert dan.handle(Looked(TAKEOVER_S - 0.1, left)) == []
    assert dan.handle(Looked(TAKEOVER_S, left)) == [Carry(2)]
    assert deb.handle(Looked(TAKEOVER_S, left)) == []
    assert deb.handle(ClaimHeard(2, DAN)) == [Follow(2, DAN)]
    assert deb.handle(Looked(1_000.0, left)) == []


def test_the_second_delegate_takes_over_where_the_first_is_dead_too() -> None:
    deb = held_by(DEB)

    assert deb.handle(Looked(TAKEOVER_S, frozenset([DEB]))) == [Carry(2)]


def test_the_second_delegate_takes_over_from_a_first_that_lives_and_does_nothing() -> None:
    deb = held_by(DEB)
    left = frozenset([DAN, DEB])

    assert deb.handle(Looked(TAKEOVER_S + STAGGER_S - 0.1, left)) == []
    assert deb.handle(Looked(TAKEOVER_S + STAGGER_S, left)) == [Carry(2)]


def test_a_submitter_that_returns_takes_its_job_back() -> None:
    sue, dan = held_by(SUE), held_by(DAN)
    dan.handle(Looked(TAKEOVER_S, frozenset([DAN])))

    assert sue.handle(ClaimHeard(2, DAN)) == [Carry(3)]
    assert dan.handle(ClaimHeard(3, SUE)) == [Follow(3, SUE)]


def test_of_two_that_took_over_at_once_the_better_rank_stays() -> None:
    dan, deb = held_by(DAN), held_by(DEB)
    dan.handle(Looked(TAKEOVER_S, frozenset([DAN])))
    deb.handle(Looked(TAKEOVER_S, frozenset([DEB])))

    assert dan.handle(ClaimHeard(2, DEB)) == []
    assert deb.handle(ClaimHeard(2, DAN)) == [Follow(2, DAN)]


def test_an_old_claim_changes_nothing() -> None:
    deb = held_by(DEB)
    deb.handle(ClaimHeard(5, DAN))

    assert deb.handle(ClaimHeard(4, SUE)) == []


@pytest.mark.parametrize("claim", [ClaimHeard(2, PeerId("mallory")), ClaimHeard(0, DAN), ClaimHeard(1 << 60, DAN)])
def test_a_claim_that_no_holder_makes_is_misbehaviour(claim: ClaimHeard) -> None:
    with pytest.raises(PeerMisbehaved):
        held_by(DEB).handle(claim)
