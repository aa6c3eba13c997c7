"""Who is alive: silence is a question first, and only those who do not object are dead."""

from __future__ import annotations

from random import Random

from croft.model.ids import PeerId
from croft.overlay.failure_detector import (
    CLOCK_AHEAD_MS_MAX,
    HELPERS,
    PROBE_S,
    SUSPICION_S,
    SUSPICIONS_PER_TICK_MAX,
    Died,
    FailureDetector,
    Forgotten,
    Heard,
    LinkDown,
    LinkUp,
    Probe,
    Reached,
    Refute,
    Revived,
    Suspected,
    Tell,
    Tick,
    Unreachable,
)

ANNA, BO, CLEO, DORA, SELF = (PeerId(name) for name in ("anna", "bo", "cleo", "dora", "self"))


def detector(*linked: PeerId) -> FailureDetector:
    """Knows four others, each by a word of sequence 10, and has links to `linked`."""
    made = FailureDetector(SELF, Random(1))
    for peer in (ANNA, BO, CLEO, DORA):
        made.handle(Heard(peer, 10))
    for peer in linked:
        made.handle(LinkUp(peer))
    return made


def test_a_link_that_falls_silent_is_a_reason_to_ask_a_few_others() -> None:
    made = FailureDetector(SELF, Random(1))
    many = [PeerId(f"p{n}") for n in range(8)]
    for peer in many:
        made.handle(Heard(peer, 1))
        made.handle(LinkUp(peer))

    [probe] = made.handle(LinkDown(many[0], False, 0.0))

    assert isinstance(probe, Probe) and probe.peer == many[0]
    assert len(set(probe.helpers)) == HELPERS and many[0] not in probe.helpers


def test_a_link_that_neither_side_needed_is_no_reason() -> None:
    assert detector(ANNA).handle(LinkDown(ANNA, True, 0.0)) == []


def test_whom_others_reach_is_not_suspected() -> None:
    made = detector(ANNA, BO)
    made.handle(LinkDown(ANNA, False, 0.0))
    made.handle(Reached(ANNA))

    assert made.handle(Tick(PROBE_S + 1)) == []
    assert not made.is_dead(ANNA)


def test_whom_nobody_reaches_is_suspected_aloud_and_dead_unless_it_objects() -> None:
    made = detector(ANNA, BO, CLEO)
    made.handle(LinkDown(ANNA, False, 0.0))

    assert made.handle(Tick(PROBE_S)) == [Tell(BO, ANNA, 10), Tell(CLEO, ANNA, 10)]
    assert not made.is_dead(ANNA)
    assert made.handle(Tick(PROBE_S + SUSPICION_S)) == [Died(ANNA)]
    assert made.is_dead(ANNA) and made.dead() == [ANNA]
    assert made.handle(Tick(99.0)) == []


def test_a_newer_word_of_its_own_clears_a_peer_and_an_old_one_does_not() -> None:
    made = detector(BO)
    made.handle(Suspected(BO, ANNA, 10, 0.0))

    assert made.handle(Heard(ANNA, 10)) == []
    made.handle(Tick(SUSPICION_S))
    assert made.is_dead(ANNA)
    assert made.handle(Heard(ANNA, 11)) == [Revived(ANNA)]
    assert not made.is_dead(ANNA)


def test_a_suspicion_is_passed_on_once_to_all_links_but_its_sender() -> None:
    made = detector(BO, CLEO)

    assert made.handle(Suspected(BO, ANNA, 10, 0.0)) == [Tell(CLEO, ANNA, 10)]
    assert made.handle(Suspected(CLEO, ANNA, 10, 0.0)) == []


def test_a_rumour_about_a_linked_peer_goes_to_that_peer_alone() -> None:
    made = detector(ANNA, BO, CLEO)

    assert made.handle(Suspected(BO, ANNA, 10, 0.0)) == [Tell(ANNA, ANNA, 10)]
    assert made.handle(Tick(SUSPICION_S + 1)) == []
    assert not made.is_dead(ANNA)


def test_what_is_older_than_a_peers_last_word_is_no_suspicion() -> None:
    made = detector(BO, CLEO)

    assert made.handle(Suspected(BO, ANNA, 9, 0.0)) == []


def test_a_rumour_about_oneself_is_refuted() -> None:
    assert detector(BO).handle(Suspected(BO, SELF, 7, 0.0)) == [Refute(7)]


def test_rumours_from_the_future_about_strangers_or_in_a_flood_are_not_heard() -> None:
    made = detector(BO, CLEO)

    assert made.handle(Suspected(BO, ANNA, CLOCK_AHEAD_MS_MAX + 1, 0.0)) == []
    assert made.handle(Suspected(BO, PeerId("stranger"), 1, 0.0)) == []
    for _ in range(SUSPICIONS_PER_TICK_MAX):
        made.handle(Suspected(BO, PeerId("stranger"), 1, 0.0))
    assert made.handle(Suspected(BO, ANNA, 10, 0.0)) == []
    made.handle(Tick(1.0))
    assert made.handle(Suspected(BO, ANNA, 10, 1.0)) == [Tell(CLEO, ANNA, 10)]


def test_a_new_link_is_told_who_is_doubted_its_own_end_too_so_that_it_objects() -> None:
    made = detector(BO)
    made.handle(Suspected(BO, ANNA, 10, 0.0))
    made.handle(Suspected(BO, CLEO, 10, 0.0))
    made.handle(Tick(SUSPICION_S))

    effects = made.handle(LinkUp(CLEO))

    assert effects == [Revived(CLEO), Tell(CLEO, ANNA, 10), Tell(CLEO, CLEO, 10)]


def test_a_member_that_cannot_be_dialled_is_probed_and_a_stranger_is_not() -> None:
    made = detector(BO)

    assert made.handle(Unreachable(ANNA, 0.0)) == [Probe(ANNA, (BO,))]
    assert made.handle(Unreachable(ANNA, 0.5)) == [], "once at a time"
    assert made.handle(Unreachable(PeerId("stranger"), 0.0)) == []


def test_who_is_no_member_any_more_is_forgotten() -> None:
    made = detector(BO)
    made.handle(Suspected(BO, ANNA, 10, 0.0))
    made.handle(Forgotten(ANNA))

    assert made.handle(Tick(99.0)) == []
    assert made.handle(Suspected(BO, ANNA, 10, 99.0)) == []


def test_it_says_when_it_is_to_be_asked_again_so_that_nobody_lives_on_for_want_of_a_tick() -> None:
    core = detector(ANNA, BO)
    assert core.due_at is None

    core.handle(LinkDown(ANNA, False, 100.0))
    assert core.due_at == 100.0 + PROBE_S
    core.handle(Tick(100.0 + PROBE_S))
    assert core.due_at == 100.0 + PROBE_S + SUSPICION_S
    assert Died(ANNA) in core.handle(Tick(100.0 + PROBE_S + SUSPICION_S))
    assert core.due_at is None
