"""Keeps this peer reachable: tells others where it sees them, learns where it is seen, and keeps in touch with a relay.

The shell of `address_observation`, `relay_choice` and `traffic`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never
from urllib.parse import urlsplit

from croft.errors import CroftError, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import PeerId, TwinId, short
from croft.overlay import address_observation as observation
from croft.overlay import relay_choice as choice
from croft.overlay.address_observation import AddressObservation, Nat, Observer
from croft.overlay.link import CLOSE_SILENT, Link
from croft.overlay.messages import PROTOCOL
from croft.overlay.path_messages import CALL_REACH, NOTICE_SEEN, ReachAnswer, ReachWanted, SeenAt
from croft.overlay.relay_choice import Relay, RelayChoice
from croft.overlay.traffic import Totals, Traffic
from croft.ports import RelayAccess, RouteKind
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    from croft.overlay.links import Links
    from croft.ports import RelayHost, Transport

log = logging.getLogger(__name__)

TICK_S = 1.0
TICK_BUSY_S = 0.5
BUSY_S = 30.0
"""How long to look more often after links or relays changed; also while something goes by a relay."""
TELL_AGAIN_S = 60.0
ADDRESS_CHARS_MAX = 64
REACH_S_MAX = 2.0
REACH_CALL_S_MAX = 5.0
REACH_AGAIN_S = 600.0
REACH_EVERY_S = 10.0
"""How often one peer may have itself tried."""
REACHING_MAX = 4
TRUSTED_MAX = 8


class Paths:
    """The ways to this peer, and what goes over them. `serve` runs it."""

    def __init__(self, own: PeerId, links: Links, transport: Transport, relays: RelayHost) -> None:
        self._own = own
        self._links = links
        self._transport = transport
        self._relays = relays
        self._observation = AddressObservation([])
        self._choice = RelayChoice()
        self._traffic = Traffic()
        self._told: dict[PeerId, tuple[str, float]] = {}
        self._reached_at: dict[PeerId, float] = {}
        self._reaching = 0
        self._tried: dict[str, float] = {}
        self._added: dict[str, None] = {}
        self._trusted: dict[str, None] = {}
        self._offered: list[Relay] | None = None
        self._jobs: asyncio.TaskGroup | None = None
        self._settling = asyncio.Lock()
        self._changed_at = -BUSY_S
        links.on_up(self._link_up)
        links.on_down(self._link_down)
        links.on_notice(NOTICE_SEEN, self._seen)
        links.on_call(CALL_REACH, self._reach)

    # --- questions ---------------------------------------------------------------------------------------------------

    def addresses(self) -> list[str]:
        """Where others may try to reach this peer: its own addresses, and outside ones that two observers confirm."""
        believed = {_text(host, port) for host, port in self._observation.believed}
        return [address for address in self._transport.addresses() if address not in self._added or address in believed]

    def nat(self) -> Nat:
        """What stands between this peer and the others."""
        return self._observation.nat()

    def outside(self) -> list[str]:
        """The outside addresses that are believed."""
        return [_text(host, port) for host, port in self._observation.believed]

    def relays(self) -> tuple[str, ...]:
        """The relays by which this peer is reached: that in use first, then those it would take next."""
        connected = list(self._transport.relays())
        return tuple(dict.fromkeys([*connected, *(relay.url for relay, _ in self._choice.in_order())]))

    def known_relays(self) -> list[tuple[Relay, float]]:
        """Relays that work, with the round trip to each in seconds; that in use first."""
        return self._choice.in_order()

    def relay_owner(self, url: str) -> PeerId | None:
        """Whose relay that is."""
        return self._choice.peer_of(url)

    def traffic(self, peer: PeerId) -> Totals:
        """What went to and from a peer since the start."""
        return self._traffic.of(peer)

    def access(self, urls: Sequence[str]) -> list[RelayAccess]:
        """How this peer gets to relays that another one named: only such as members offer, at the nearest URL."""
        known: dict[str, None] = {}
        for url in urls:
            owner = self._choice.peer_of(url)
            if owner is not None:
                best = self._choice.best_url_of(owner)
                if best is not None:
                    known[best] = None
            elif url in self._trusted:
                known[url] = None
        return [RelayAccess(url) for url in known]

    # --- changes -----------------------------------------------------------------------------------------------------

    def trust(self, urls: Sequence[str]) -> None:
        """Whoever invited this peer named these relays; their owners are not known here yet."""
        for url in urls:
            if len(self._trusted) < TRUSTED_MAX:
                self._trusted[url] = None

    def doubt(self, relays: Sequence[RelayAccess]) -> None:
        """Somebody could not be reached by these relays, and they may be to blame.

        What is sent by a dead one holds up what goes by others: in iroh all wait in one line.
        """
        self._choose(choice.Doubted([relay.url for relay in relays], self._now()))

    def offered(self, relays: Sequence[Relay]) -> None:
        """These relays are offered to this peer now."""
        self._changed_at = self._now()
        self._offered = [relay for relay in relays if relay.peer != self._own]

    async def serve(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as jobs:
            self._jobs = jobs
            try:
                while True:
                    await asyncio.sleep(self._tick())
            finally:
                self._jobs = None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _tick(self) -> float:
        """Looks at every link; returns after how many seconds to look again."""
        now = self._now()
        in_use: set[str] = set()
        for link in self._links.all():
            route = link.connection.route()
            self._traffic.show(link.peer, id(link.connection), route, now)
            if route.kind is RouteKind.RELAYED:
                in_use.add(route.address)
            self._tell(link, now)
        self._observe(observation.Tick(self._own_hosts(), now))
        if self._offered is not None:
            relays, self._offered = self._offered, None
            self._choose(choice.Offered(relays, now))
        self._choose(choice.Tick(in_use, now))
        self._find_out_reach(now)
        return TICK_BUSY_S if in_use or now - self._changed_at < BUSY_S else TICK_S

    def _own_hosts(self) -> list[str]:
        hosts = {
            host for address in self._transport.addresses() if address not in self._added if (host := _host(address))
        }
        return sorted(hosts)

    def _tell(self, link: Link, now: float) -> None:
        route = link.connection.route()
        if route.kind is not RouteKind.DIRECT:
            return
        told, at = self._told.get(link.peer, ("", 0.0))
        if route.address != told or now - at > TELL_AGAIN_S:
            self._told[link.peer] = (route.address, now)
            link.notify(NOTICE_SEEN, encode(SeenAt(route.address)))

    def _link_up(self, link: Link) -> None:
        self._changed_at = self._now()
        self._told.pop(link.peer, None)
        self._tell(link, self._now())

    def _link_down(self, link: Link, reason: str) -> None:
        self._changed_at = self._now()
        self._told.pop(link.peer, None)
        self._traffic.show(link.peer, id(link.connection), link.connection.route(), self._now())
        self._traffic.ended(link.peer)
        self._observe(observation.ObserverGone(link.peer, self._now()))

    # --- where this peer is seen -------------------------------------------------------------------------------------

    def _seen(self, link: Link, body: bytes) -> None:
        address = decode(body, SeenAt, step=observation.STEP).address
        host, port = _parse(address)
        where = _host(link.connection.route().address) or link.peer
        observer = Observer(link.peer, TwinId(link.greeted.twin), where)
        self._observe(observation.Seen(observer, host, port, self._now()))

    def _observe(self, event: observation.Event) -> None:
        for effect in self._observation.handle(event):
            match effect:
                case observation.AddAddress(host, port):
                    address = _text(host, port)
                    self._added[address] = None
                    log.info("others see this peer at %s", address)
                    self._start(self._transport.add_address(address), f"paths.add.{address}")
                case observation.RemoveAddress(host, port):
                    address = _text(host, port)
                    self._added.pop(address, None)
                    log.info("this peer is no longer seen at %s", address)
                    self._start(self._transport.remove_address(address), f"paths.remove.{address}")
                case _:
                    assert_never(effect)

    def _find_out_reach(self, now: float) -> None:
        """Has somebody else try an outside address that nobody has reached unasked."""
        if self._observation.nat() is not Nat.PORT_RESTRICTED:
            return
        for address in self.outside():
            if now - self._tried.get(address, -REACH_AGAIN_S) < REACH_AGAIN_S:
                continue
            for link in self._links.all():
                if link.connection.route().kind is RouteKind.DIRECT:
                    self._tried[address] = now
                    self._start(self._ask_reach(link, address), f"paths.reach.{address}")
                    return

    async def _ask_reach(self, link: Link, address: str) -> None:
        with contextlib.suppress(CroftError, PeerMisbehaved):
            body = await link.call(CALL_REACH, encode(ReachWanted(address)), deadline_s=REACH_CALL_S_MAX)
            if decode(body, ReachAnswer, step=CALL_REACH).is_reached:
                self._observe(observation.CameIn(self._now()))

    async def _reach(self, link: Link, body: bytes) -> bytes:
        address = decode(body, ReachWanted, step=CALL_REACH).address
        host, _ = _parse(address)
        route = link.connection.route()
        now = self._now()
        if route.kind is not RouteKind.DIRECT or _host(route.address) != host:
            # Nobody can make this peer knock at somebody else's door.
            raise Refused("only the host that a caller is seen at is tried")
        if self._reaching >= REACHING_MAX or now - self._reached_at.get(link.peer, -REACH_EVERY_S) < REACH_EVERY_S:
            raise Refused("asked too often", remedy="Try again in a minute.")
        self._reached_at[link.peer] = now
        self._reaching += 1
        try:
            return encode(ReachAnswer(await self._transport.reaches(link.peer, address, PROTOCOL, REACH_S_MAX)))
        finally:
            self._reaching -= 1

    # --- relays ------------------------------------------------------------------------------------------------------

    def _choose(self, event: choice.Event) -> None:
        for effect in self._choice.handle(event):
            match effect:
                case choice.Ask(url):
                    self._start(self._ask(url), f"paths.ask.{url}")
                case choice.Use(relay):
                    self._start(self._use(relay), "paths.use")
                case choice.Dead(url):
                    self._start(self._give_up(url), f"paths.give_up.{url}")
                case _:
                    assert_never(effect)

    async def _ask(self, url: str) -> None:
        try:
            round_trip_s = await self._relays.ask(url, choice.ANSWER_S_MAX)
        except Unreachable:
            self._choose(choice.Failed(url, self._now()))
        else:
            self._choose(choice.Answered(url, round_trip_s, self._now()))

    async def _use(self, relay: Relay | None) -> None:
        log.info("reached by the relay %s of %s", *((relay.url, short(relay.peer)) if relay else ("none", "nobody")))
        async with self._settling:
            home = self._choice.home
            await self._transport.use_relays([RelayAccess(home.url)] if home is not None else [])

    async def _give_up(self, url: str) -> None:
        log.info("the relay %s does not answer any more", url)
        async with self._settling:  # the relay in its place is ours before others are dialled
            for link in self._links.all():
                route = link.connection.route()
                if route.kind is RouteKind.RELAYED and route.address == url:
                    # The connection would notice in half a minute; a new one is there in a moment.
                    link.close(CLOSE_SILENT, "its relay does not answer any more")

    def _start(self, work: object, name: str) -> None:
        assert asyncio.iscoroutine(work)
        if self._jobs is None:
            work.close()
            return
        self._jobs.create_task(work, name=name)


def relay_urls(addresses: Sequence[str], port: int) -> list[str]:
    """Where a relay of this peer may be reached: at each host of its addresses, loopback only if there is no other."""
    hosts = dict.fromkeys(host for address in addresses if (host := _host(address)))
    far = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
    return [f"http://{_text(host, port)}" for host in far or hosts]


def host_of_url(url: str) -> str:
    """The host in a relay's URL; empty if it is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") if parts.scheme == "http" and parts.port is not None else ""
    except ValueError:
        return ""


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    try:
        if len(address) > ADDRESS_CHARS_MAX:
            raise ValueError
        parsed = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise PeerMisbehaved(f"{address[:ADDRESS_CHARS_MAX]!r} is no address", step=observation.STEP) from None
    if parsed.is_unspecified or parsed.is_multicast or not 0 < number < 1 << 16:
        raise PeerMisbehaved(f"{address!r} is nobody's address", step=observation.STEP)
    return str(parsed), number


def _host(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address.rpartition(":")[0].strip("[]")))
    except ValueError:
        return ""


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
