"""What a peer believes of its own outside addresses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.model.ids import PeerId, TwinId
from croft.overlay.address_observation import (
    BELIEVED_MAX,
    OBSERVERS_MAX,
    STALE_S,
    TRIED_MAX,
    AddAddress,
    AddressObservation,
    CameIn,
    Event,
    Nat,
    Observer,
    ObserverGone,
    RemoveAddress,
    Seen,
    Tick,
)

INSIDE = "192.168.1.2"
OUTSIDE = "198.51.100.7"


def observer(name: str, *, twin: str = "", host: str = "") -> Observer:
    return Observer(PeerId(name), TwinId(twin or f"twin of {name}"), host or f"host of {name}")


def seen(name: str, port: int, host: str = OUTSIDE, now: float = 0.0, **who: str) -> Seen:
    return Seen(observer(name, **who), host, port, now)


def observation(*events: Event) -> AddressObservation:
    core = AddressObservation([INSIDE])
    for event in events:
        core.handle(event)
    return core


def test_two_observers_in_different_places_are_believed() -> None:
    core = observation(seen("anna", 4001))

    assert core.believed == []
    core.handle(seen("bert", 4001))
    assert core.believed == [(OUTSIDE, 4001)]
    assert core.nat() is Nat.PORT_RESTRICTED


def test_one_owner_s_devices_and_one_host_s_names_are_one_observer() -> None:
    assert observation(seen("anna", 4001, twin="x"), seen("bert", 4001, twin="x")).believed == []
    assert observation(seen("anna", 4001, host=OUTSIDE), seen("bert", 4001, host=OUTSIDE)).believed != []
    one_host = AddressObservation([INSIDE])
    for name in ("anna", "bert"):
        one_host.handle(Seen(observer(name, host="203.0.113.9"), OUTSIDE, 4001, 0.0))
    assert one_host.believed == []


def test_the_word_of_one_is_tried_and_told_to_nobody() -> None:
    core = AddressObservation([INSIDE])

    assert core.handle(seen("anna", 4001)) == [AddAddress(OUTSIDE, 4001)]
    assert core.believed == []
    assert core.nat() is Nat.UNKNOWN


def test_a_liar_neither_adds_to_what_is_believed_nor_takes_from_it() -> None:
    core = observation(seen("anna", 4001), seen("bert", 4001))

    core.handle(seen("mallory", 9, host="203.0.113.66"))
    assert core.believed == [(OUTSIDE, 4001)]
    assert core.nat() is Nat.PORT_RESTRICTED
    core.handle(seen("mallory", 5, host=OUTSIDE))
    assert core.believed == [(OUTSIDE, 4001)]
    assert core.nat() is Nat.PORT_RESTRICTED


def test_a_liar_that_changes_its_word_has_still_only_one() -> None:
    core = AddressObservation([INSIDE])
    for port in range(1, 50):
        core.handle(seen("mallory", port, host="203.0.113.66"))

    assert core.handle(seen("mallory", 50, host="203.0.113.66")) == [
        RemoveAddress("203.0.113.66", 49),
        AddAddress("203.0.113.66", 50),
    ]


def test_different_ports_for_different_observers_are_a_symmetric_nat_and_of_no_use() -> None:
    core = observation(seen("anna", 4001))

    effects = core.handle(seen("bert", 4002))

    assert core.nat() is Nat.SYMMETRIC
    assert effects == [RemoveAddress(OUTSIDE, 4001)]


def test_seen_at_its_own_address_there_is_no_nat() -> None:
    core = observation(seen("anna", 7117, host=INSIDE), seen("bert", 7117, host=INSIDE))

    assert core.nat() is Nat.NONE
    assert core.believed == []


def test_whoever_is_reached_unasked_has_a_full_cone() -> None:
    core = observation(seen("anna", 4001), seen("bert", 4001), CameIn(1.0))

    assert core.nat() is Nat.FULL_CONE


def test_a_new_port_replaces_the_old_one_once_two_have_seen_it() -> None:
    core = observation(seen("anna", 4001), seen("bert", 4001))

    core.handle(seen("anna", 5005, now=10.0))
    assert core.believed == [(OUTSIDE, 4001)]
    effects = core.handle(seen("bert", 5005, now=11.0))
    assert core.believed == [(OUTSIDE, 5005)]
    assert RemoveAddress(OUTSIDE, 4001) in effects


def test_an_address_outlives_its_observers_for_a_while_and_no_longer() -> None:
    core = observation(seen("anna", 4001), seen("bert", 4001), ObserverGone(PeerId("anna"), 1.0))
    core.handle(ObserverGone(PeerId("bert"), 2.0))

    assert core.handle(Tick([INSIDE], STALE_S - 1)) == []
    assert core.handle(Tick([INSIDE], STALE_S + 3)) == [RemoveAddress(OUTSIDE, 4001)]
    # What it was seen to be is still the best guess.
    assert core.nat() is Nat.PORT_RESTRICTED


def test_another_network_makes_all_that_was_seen_worthless() -> None:
    core = observation(seen("anna", 4001), seen("bert", 4001))

    assert core.handle(Tick(["10.0.0.5"], 1.0)) == [RemoveAddress(OUTSIDE, 4001)]
    assert core.nat() is Nat.UNKNOWN


EVENTS = st.one_of(
    st.builds(
        lambda name, twin, host, port, now: Seen(
            observer(f"p{name}", twin=f"t{twin}", host=f"h{host}"), f"1.2.3.{host}", port, now
        ),
        st.integers(0, 99),
        st.integers(0, 5),
        st.integers(0, 3),
        st.integers(1, 5),
        st.floats(0, 1000),
    ),
    st.builds(lambda name, now: ObserverGone(PeerId(f"p{name}"), now), st.integers(0, 99), st.floats(0, 1000)),
    st.builds(CameIn, st.floats(0, 1000)),
    st.builds(lambda now: Tick([INSIDE], now), st.floats(0, 1000)),
)


@given(st.lists(EVENTS, max_size=120))
def test_whatever_is_said_little_is_added_and_effects_add_up(story: list[Event]) -> None:
    core = AddressObservation([INSIDE])
    added: set[tuple[str, int]] = set()
    for event in story:
        for effect in core.handle(event):
            match effect:
                case AddAddress(host, port):
                    assert (host, port) not in added
                    added.add((host, port))
                case RemoveAddress(host, port):
                    added.remove((host, port))
        assert len(added) <= BELIEVED_MAX + TRIED_MAX
        assert set(core.believed) <= added
        assert len(core._words) <= OBSERVERS_MAX
        core.nat()
