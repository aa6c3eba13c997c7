"""Counts what goes to and from each peer, directly and by relays, over all connections that come and go.

Sans-IO: it is shown the route of each live connection now and then.
"""

from __future__ import annotations

from dataclasses import dataclass

from croft.model.ids import PeerId
from croft.ports import Route

PEERS_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes since the peer started, headers included; rates in bytes per second over the last moments."""

    direct_sent: int = 0
    direct_received: int = 0
    relayed_sent: int = 0
    relayed_received: int = 0
    sent_per_s: float = 0.0
    received_per_s: float = 0.0

    def plus(self, route: Route) -> Totals:
        """These and what one more connection has moved."""
        return Totals(
            self.direct_sent + route.sent_bytes - route.relayed_sent_bytes,
            self.direct_received + route.received_bytes - route.relayed_received_bytes,
            self.relayed_sent + route.relayed_sent_bytes,
            self.relayed_received + route.relayed_received_bytes,
            self.sent_per_s,
            self.received_per_s,
        )


@dataclass(slots=True)
class _Account:
    past: Totals
    connection: int
    route: Route
    at: float
    sent_per_s: float = 0.0
    received_per_s: float = 0.0


class Traffic:
    """The accounts of all peers."""

    def __init__(self) -> None:
        self._accounts: dict[PeerId, _Account] = {}

    def show(self, peer: PeerId, connection: int, route: Route, now: float) -> None:
        """The route of the live connection to `peer`; `connection` tells it from earlier and later ones."""
        account = self._accounts.get(peer)
        if account is None:
            if len(self._accounts) >= PEERS_MAX:
                self._accounts.pop(next(iter(self._accounts)))
            self._accounts[peer] = _Account(Totals(), connection, route, now)
            return
        if account.connection != connection:
            account.past = account.past.plus(account.route)
            account.connection, account.route = connection, Route(route.kind)
        elapsed_s = now - account.at
        if elapsed_s > 0:
            account.sent_per_s = max(0, route.sent_bytes - account.route.sent_bytes) / elapsed_s
            account.received_per_s = max(0, route.received_bytes - account.route.received_bytes) / elapsed_s
        account.route, account.at = route, now

    def of(self, peer: PeerId) -> Totals:
        """What went to and from a peer so far."""
        account = self._accounts.get(peer)
        if account is None:
            return Totals()
        totals = account.past.plus(account.route)
        return Totals(
            totals.direct_sent,
            totals.direct_received,
            totals.relayed_sent,
            totals.relayed_received,
            account.sent_per_s,
            account.received_per_s,
        )

    def ended(self, peer: PeerId) -> None:
        """No connection to a peer is left; nothing moves."""
        if account := self._accounts.get(peer):
            account.sent_per_s = account.received_per_s = 0.0
