"""What went to and from a peer, over connections that come and go."""

from __future__ import annotations

from croft.model.ids import PeerId
from croft.overlay.traffic import Totals, Traffic
from croft.ports import Route, RouteKind

ANNA = PeerId("anna")


def route(sent: int, received: int, relayed_sent: int = 0, relayed_received: int = 0) -> Route:
    return Route(RouteKind.DIRECT, "", None, sent, received, relayed_sent, relayed_received)


def test_direct_and_relayed_bytes_are_told_apart() -> None:
    traffic = Traffic()
    traffic.show(ANNA, 1, route(100, 50, 30, 20), 0.0)

    assert traffic.of(ANNA) == Totals(70, 30, 30, 20)


def test_what_earlier_connections_moved_still_counts() -> None:
    traffic = Traffic()
    traffic.show(ANNA, 1, route(100, 50), 0.0)
    traffic.show(ANNA, 2, route(7, 3), 1.0)
    traffic.show(ANNA, 2, route(8, 4), 2.0)

    totals = traffic.of(ANNA)
    assert (totals.direct_sent, totals.direct_received) == (108, 54)


def test_rates_are_of_the_last_moment_and_nothing_once_it_ended() -> None:
    traffic = Traffic()
    traffic.show(ANNA, 1, route(0, 0), 0.0)
    traffic.show(ANNA, 1, route(1_000, 500), 0.5)

    assert (traffic.of(ANNA).sent_per_s, traffic.of(ANNA).received_per_s) == (2_000, 1_000)
    traffic.ended(ANNA)
    assert traffic.of(ANNA).sent_per_s == 0
    assert traffic.of(PeerId("nobody")) == Totals()
