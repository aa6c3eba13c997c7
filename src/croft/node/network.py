"""The ways between peers, as the local API shows them; and what to do if a way could be better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.control.naming import find_peer
from croft.errors import Usage
from croft.model.ids import PeerId
from croft.overlay.address_observation import Nat
from croft.overlay.path_messages import MEASURE_PURPOSE
from croft.overlay.traffic import Totals
from croft.ports import RouteKind

if TYPE_CHECKING:
    from croft.node.assemble import Parts
    from croft.overlay.link import Link
    from croft.overlay.membership import Member

INTERNET_WH_PER_GB: Final = 6.0
LAN_WH_PER_GB: Final = 0.5
ENERGY_ASSUMPTION: Final = (
    "6 Wh per GB over the internet (0.06 kWh/GB in 2015, halving every three years or so: after Aslan et al. 2018), "
    "0.5 Wh per GB on a local network, twice for what a relay passes on; the machines themselves are left out"
)


@dataclass(frozen=True, slots=True)
class _Measured:
    to_per_s: float
    from_per_s: float
    at: float


class NetworkDesk:
    """Fulfils `croft.control.network_app.Network`."""

    def __init__(self, parts: Parts, peers: Callable[[], list[schema.Peer]]) -> None:
        self._parts = parts
        self._peers = peers
        self._measured: dict[PeerId, _Measured] = {}

    def net(self) -> schema.Net:
        """How this peer is reached, and the ways to all members."""
        parts, paths = self._parts, self._parts.paths
        name_of = parts.overlay.name_of
        home = [owner for url in parts.ports.transport.relays() if (owner := paths.relay_owner(url))]
        return schema.Net(
            nat=paths.nat(),
            addresses=list(paths.addresses()),
            outside=paths.outside(),
            relays=[
                schema.Relay(
                    url=relay.url,
                    peer=relay.peer,
                    name=name_of(relay.peer),
                    round_trip_s=round_trip_s,
                    is_home=relay.peer in home,
                )
                for relay, round_trip_s in paths.known_relays()
            ],
            relayed=[
                schema.Relayed(
                    peer=peer,
                    name=name_of(peer),
                    received_bytes=usage.received_bytes,
                    sent_bytes=usage.sent_bytes,
                    dropped_frames=usage.dropped_frames,
                )
                for peer, usage in sorted(parts.relaying.usage().items())
            ],
            relay_clients=parts.relaying.connected,
            ways=[self._way(member) for member in parts.overlay.members() if member.peer != parts.overlay.own.peer],
            energy_assumption=ENERGY_ASSUMPTION,
            advice=self._own_advice(),
        )

    async def measure(self, peer: str) -> schema.Way:
        """Sends as much as goes to a peer for a moment, and takes as much. Raises NotFound, Busy, Unreachable."""
        parts = self._parts
        wanted = PeerId(find_peer(self._peers(), peer).peer)
        if wanted == parts.overlay.own.peer:
            raise Usage("there is no way from this peer to itself", remedy="Name another one: `croft peers`.")
        up = await parts.measurements.upload(await parts.overlay.open_stream(wanted, MEASURE_PURPOSE))
        down = await parts.measurements.download(await parts.overlay.open_stream(wanted, MEASURE_PURPOSE))
        self._measured[wanted] = _Measured(up, down, parts.ports.clock.now())
        return next(self._way(member) for member in parts.overlay.members() if member.peer == wanted)

    # --- ways --------------------------------------------------------------------------------------------------------

    def _way(self, member: Member) -> schema.Way:
        parts = self._parts
        link = parts.overlay.links.get(member.peer)
        totals = parts.paths.traffic(member.peer)
        measured = self._measured.get(member.peer)
        route = link.connection.route() if link is not None else None
        is_relayed = route is not None and route.kind is RouteKind.RELAYED
        address = route.address if route is not None else ""
        owner = parts.paths.relay_owner(address) if is_relayed else None
        return schema.Way(
            peer=member.peer,
            name=member.name,
            link="offline" if route is None else "relayed" if is_relayed else "direct",
            relay_by=parts.overlay.name_of(owner) if owner else "",
            address=address,
            nat=member.nat,
            round_trip_s=link.round_trip_s if link is not None else None,
            sent_per_s=totals.sent_per_s,
            received_per_s=totals.received_per_s,
            measured_to_per_s=measured.to_per_s if measured else None,
            measured_from_per_s=measured.from_per_s if measured else None,
            measured_at=measured.at if measured else 0.0,
            direct_sent_bytes=totals.direct_sent,
            direct_received_bytes=totals.direct_received,
            relayed_sent_bytes=totals.relayed_sent,
            relayed_received_bytes=totals.relayed_received,
            energy_wh=_energy_wh(totals, address),
            advice=self._advice(member, link, is_relayed),
        )

    def _advice(self, member: Member, link: Link | None, is_relayed: bool) -> str:
        own, other = self._parts.paths.nat(), member.nat
        if link is None and own in (Nat.PORT_RESTRICTED, Nat.SYMMETRIC) and not self._parts.paths.known_relays():
            return "It may be out of reach without a relay: let a member that can be reached run `croft offer relay`."
        if not is_relayed:
            return ""
        if Nat.SYMMETRIC in (own, other):
            whose, port = ("your router", self._own_port()) if own == Nat.SYMMETRIC else (f"{member.name}'s router", "")
            what = f"UDP port {port}" if port else "its UDP port"
            return f"A symmetric NAT lets no hole be punched: forward {what} on {whose}, or allow UPnP there."
        return "A direct way is being looked for; a firewall that drops UDP on either side would prevent it."

    def _own_port(self) -> str:
        return next((address.rpartition(":")[2] for address in self._parts.ports.transport.addresses()), "")

    def _own_advice(self) -> str:
        paths = self._parts.paths
        match paths.nat():
            case Nat.SYMMETRIC if not paths.known_relays():
                return (
                    "Your NAT is symmetric and no member offers a relay: only peers that can be reached reach you. "
                    "Let one of them run `croft offer relay 20Mbit`, or allow UPnP on your router."
                )
            case Nat.NONE | Nat.FULL_CONE if self._parts.relaying.own is None:
                return "This peer can be reached: it could relay for others with `croft offer relay 20Mbit`."
        return ""


def _energy_wh(totals: Totals, address: str) -> float:
    direct = totals.direct_sent + totals.direct_received
    relayed = totals.relayed_sent + totals.relayed_received
    per_gb = LAN_WH_PER_GB if _is_near(address) else INTERNET_WH_PER_GB
    return (direct * per_gb + relayed * 2 * INTERNET_WH_PER_GB) / 1e9


def _is_near(address: str) -> bool:
    try:
        return ip_address(address.rpartition(":")[0].strip("[]")).is_private
    except ValueError:
        return False
