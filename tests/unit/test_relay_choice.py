"""Which relay a peer uses."""

from __future__ import annotations

from croft.model.ids import PeerId
from croft.overlay.relay_choice import (
    ASK_BUSY_EVERY_S,
    ASK_HOME_EVERY_S,
    DOUBT_AGAIN_S,
    Answered,
    Ask,
    Dead,
    Doubted,
    Failed,
    Offered,
    Relay,
    RelayChoice,
    Tick,
    Use,
)

NEAR, FAR, OTHER = (Relay(f"http://{name}", PeerId(name)) for name in ("near", "far", "other"))


def choice(*relays: Relay) -> RelayChoice:
    core = RelayChoice()
    core.handle(Offered(relays, 0.0))
    for number, relay in enumerate(relays):
        core.handle(Answered(relay.url, 0.01 * (number + 1), 0.0))
    return core


def test_all_that_are_offered_are_asked_and_the_first_to_answer_is_used() -> None:
    core = RelayChoice()

    assert core.handle(Offered([FAR, NEAR], 0.0)) == [Ask(FAR.url), Ask(NEAR.url)]
    assert core.handle(Answered(FAR.url, 0.09, 0.1)) == [Use(FAR)]


def test_a_much_nearer_one_takes_over_and_one_that_is_alike_does_not() -> None:
    core = RelayChoice()
    core.handle(Offered([FAR, NEAR, OTHER], 0.0))
    core.handle(Answered(FAR.url, 0.09, 0.1))

    assert core.handle(Answered(OTHER.url, 0.08, 0.1)) == []
    assert core.handle(Answered(NEAR.url, 0.01, 0.1)) == [Use(NEAR)]
    assert [relay for relay, _ in core.in_order()] == [NEAR, OTHER, FAR]


def test_two_silences_in_a_row_and_the_next_one_is_used() -> None:
    core = choice(NEAR, FAR)

    assert core.handle(Failed(NEAR.url, 1.0)) == [Ask(NEAR.url)]
    assert core.home == NEAR
    assert core.handle(Failed(NEAR.url, 1.8)) == [Use(FAR), Dead(NEAR.url)]
    assert core.home == FAR


def test_one_silence_is_chance() -> None:
    core = choice(NEAR, FAR)
    core.handle(Failed(NEAR.url, 1.0))
    core.handle(Answered(NEAR.url, 0.01, 1.1))

    assert core.handle(Failed(NEAR.url, 20.0)) == [Ask(NEAR.url)]
    assert core.home == NEAR


def test_the_last_relay_that_dies_leaves_none_and_comes_back() -> None:
    core = choice(NEAR)
    core.handle(Failed(NEAR.url, 1.0))

    assert core.handle(Failed(NEAR.url, 1.8)) == [Use(None), Dead(NEAR.url)]
    assert core.in_order() == []
    assert core.handle(Answered(NEAR.url, 0.01, 9.0)) == [Use(NEAR)]


def test_a_relay_that_is_offered_no_more_is_left() -> None:
    core = choice(NEAR, FAR)

    assert core.handle(Offered([FAR], 5.0))[0] == Use(FAR)
    assert core.handle(Offered([], 6.0)) == [Use(None)]


def test_the_home_relay_is_watched_closely_while_something_goes_by_it() -> None:
    core = choice(NEAR, FAR)

    assert core.handle(Tick((), ASK_BUSY_EVERY_S + 0.1)) == []
    assert core.handle(Tick([NEAR.url], ASK_BUSY_EVERY_S + 0.1)) == [Ask(NEAR.url)]
    assert core.handle(Tick([NEAR.url], ASK_BUSY_EVERY_S + 0.2)) == []
    core.handle(Answered(NEAR.url, 0.01, 1.0))
    assert core.handle(Tick((), 1.0 + ASK_HOME_EVERY_S)) == [Ask(NEAR.url)]


def test_a_relay_of_the_other_sides_is_watched_as_closely_and_its_death_is_told() -> None:
    core = choice(NEAR, FAR, OTHER)

    assert core.handle(Tick([FAR.url], ASK_BUSY_EVERY_S + 0.1)) == [Ask(NEAR.url), Ask(FAR.url)]
    assert core.handle(Failed(FAR.url, 1.0)) == [Ask(FAR.url)]
    assert core.handle(Failed(FAR.url, 1.1)) == [Dead(FAR.url)]
    assert core.home == NEAR
    assert core.best_url_of(FAR.peer) is None, "nobody is dialled by it any more"
    assert core.handle(Failed(FAR.url, 9.0)) == [], "it is dead once"


def test_relays_by_which_a_dial_failed_are_asked_at_once_but_not_again_and_again() -> None:
    core = choice(NEAR, FAR)

    doubted = Doubted([FAR.url, "http://unknown"], 3.0)
    assert core.handle(doubted) == [Ask(FAR.url)]
    assert core.handle(doubted) == []
    core.handle(Answered(FAR.url, 0.02, 3.1))
    assert core.handle(Doubted([FAR.url], 3.2)) == []
    assert core.handle(Doubted([FAR.url], 3.0 + DOUBT_AGAIN_S)) == [Ask(FAR.url)]


def test_a_relay_is_known_by_its_owner_at_the_url_that_works_best() -> None:
    lan = Relay("http://10.0.0.1", PeerId("near"))
    core = choice(NEAR, lan)
    for _ in range(4):
        core.handle(Answered(lan.url, 0.001, 0.0))

    assert core.best_url_of(PeerId("near")) == lan.url
    assert core.peer_of(NEAR.url) == "near"
    assert core.best_url_of(PeerId("nobody")) is None
