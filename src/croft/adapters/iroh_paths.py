"""Sums up the paths of one connection: which is in use, and what went directly and what by relays.

The binding tells of the paths that are open now; one that closes takes its counters along. So each path's last word is
kept, and added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from croft.ports import Route, RouteKind

FRAME_OVERHEAD_BYTES = 42
"""Ethernet, IPv4 and UDP headers: what a datagram costs on the wire besides its payload."""
RELAY_FRAME_OVERHEAD_BYTES = 66 + 38
"""Ethernet, IPv4 and TCP headers, the WebSocket's and the relay's; about, as TCP cuts its own segments."""


class Paths:
    """The paths that one connection has used so far."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[bool, int, int]] = {}

    def route(self, open_paths: Sequence[Any]) -> Route:
        """The path in use, with all that was sent and received, headers included."""
        for path in open_paths:
            stats = path.stats
            overhead = RELAY_FRAME_OVERHEAD_BYTES if path.is_relay else FRAME_OVERHEAD_BYTES
            sent = stats.udp_tx_bytes + stats.udp_tx_datagrams * overhead
            received = stats.udp_rx_bytes + stats.udp_rx_datagrams * overhead
            self._counted[path.id] = (path.is_relay, sent, received)
        counted = self._counted.values()
        unknown = Route(
            RouteKind.UNKNOWN,
            sent_bytes=sum(sent for _, sent, _ in counted),
            received_bytes=sum(received for _, _, received in counted),
            relayed_sent_bytes=sum(sent for is_relay, sent, _ in counted if is_relay),
            relayed_received_bytes=sum(received for is_relay, _, received in counted if is_relay),
        )
        # The side that was dialled selects none while it still holds a dead one of an earlier connection for the best.
        path = next((path for path in open_paths if path.is_selected), open_paths[0] if open_paths else None)
        if path is None:
            return unknown
        kind = RouteKind.RELAYED if path.is_relay else RouteKind.DIRECT
        address = path.remote_addr.rstrip("/") if path.is_relay else path.remote_addr
        return replace(unknown, kind=kind, address=address, round_trip_s=path.rtt_ms / 1_000)
