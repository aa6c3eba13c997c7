"""A network in memory: hosts, links with latency and loss, partitions, crashes; all drawn from one seed.

It behaves as the real transport was measured to behave: streams are reliable, so that loss shows as delay; a
stream takes 1.25 MB before its writer waits; a peer that vanishes is noticed only after the idle timeout.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from croft.adapters import dialling
from croft.adapters.socket_addresses import SocketAddress
from croft.errors import Failed
from croft.model.ids import PeerId
from croft.ports import RelayAccess, RouteKind
from croft.sim.connections import ACCEPTED_MAX, Pipe, Signal, SimulatedConnection, Way

FIRST_PORT = 40_000
LOOPBACK_DELAY_S = 0.000_05
RETRANSMISSION_S = 0.2
DIAL_RETRY_S = 0.5
IDLE_S_MAX = 30.0
"""After this long without a packet, both sides give a connection up."""
CODE_CLOSED = 0
CODE_BUSY = 1
CODE_REPLACED = 2


def peer_id_of(secret_key: bytes) -> PeerId:
    """The id that belongs to a secret key: the same as on the real transport."""
    return PeerId(Ed25519PrivateKey.from_private_bytes(secret_key).public_key().public_bytes_raw().hex())


@dataclass
class Host:
    """A machine on the network. Its transports share its address and its uplink."""

    name: str
    address: str
    uplink_free_at: float = 0.0
    transports: dict[int, SimulatedTransport] = field(default_factory=dict)


class SimulatedNetwork:
    """The cables between hosts. Hosts come to be when first named.

    Args:
        random: the source of every delay and loss.
        latency_s: least and most one-way delay of a packet, drawn anew for each.
        bandwidth: bytes per second that a host can send; None for no limit.
        loss: probability that a packet is lost, and retransmitted, on its way.
    """

    def __init__(
        self,
        random: Random,
        *,
        latency_s: tuple[float, float] = (0.005, 0.02),
        bandwidth: float | None = None,
        loss: float = 0.0,
    ) -> None:
        assert 0 <= loss < 1
        self._random = random
        self.latency_s = latency_s
        self.bandwidth = bandwidth
        self.loss = loss
        self._hosts: dict[str, Host] = {}
        self._links: dict[tuple[str, str], tuple[float, float]] = {}
        self._group_of: dict[str, int] | None = None
        self._cuts: dict[tuple[str, str], None] = {}
        self._ends: dict[SimulatedConnection, Callable[[], bool]] = {}
        self._idle_timers: dict[SimulatedConnection, asyncio.TimerHandle] = {}
        self._held: list[Pipe] = []
        self._relays: dict[str, str] = {}

    def open(self, host: str, secret_key: bytes, protocols: Sequence[bytes], port: int = 0) -> SimulatedTransport:
        """A transport on `host`. Raises Failed if the port is taken, like the real one."""
        return SimulatedTransport(self, self.host(host), secret_key, protocols, port)

    def host(self, name: str) -> Host:
        """The host of that name."""
        if name not in self._hosts:
            number = len(self._hosts) + 1
            self._hosts[name] = Host(name, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        return self._hosts[name]

    def set_latency(self, one: str, other: str, low_s: float, high_s: float) -> None:
        """Gives the link between two hosts its own delay, both ways."""
        self._links[one, other] = self._links[other, one] = (low_s, high_s)

    def add_relay(self, url: str, host: str) -> None:
        """From now on a relay of that URL runs on a host."""
        self._relays[url] = self.host(host).name
        self._review(list(self._ends))

    def remove_relay(self, url: str) -> None:
        """The relay is gone."""
        self._relays.pop(url, None)
        self._review(list(self._ends))

    # --- faults -------------------------------------------------------------------------------------------

    def cut(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Nothing gets from `sources` to `targets` any more; the way back stays open."""
        others = list(targets)
        for source in sources:
            self._cuts.update({(source, target): None for target in others})
        self._review(list(self._ends))

    def partition(self, *groups: Iterable[str]) -> None:
        """Only hosts of one group reach each other; hosts in no group reach nobody. Replaces earlier ones."""
        self._group_of = {host: number for number, group in enumerate(groups) for host in group}
        self._review(list(self._ends))

    def heal(self) -> None:
        """Every link works again. What was under way arrives, unless its connection was given up."""
        self._cuts, self._group_of = {}, None
        self._review(list(self._ends))

    def crash(self, host: str, *, is_loud: bool = False) -> None:
        """Ends every transport of a host at once, as SIGKILL does.

        Silently, the peers notice by their own heartbeats or the idle timeout; loudly, they are told within a
        moment. The host itself can open new transports at once. Its tasks are the caller's to cancel.
        """
        for transport in list(self.host(host).transports.values()):
            transport.crash(is_loud=is_loud)

    # --- what transports and pipes ask of it --------------------------------------------------------------

    def delay_s(self, source: Host, target: Host, size_bytes: int) -> float:
        """How long a packet that is sent now takes, with its retransmissions and the queue at its uplink."""
        if source is target:
            return LOOPBACK_DELAY_S
        low_s, high_s = self._links.get((source.name, target.name), self.latency_s)
        delay_s = self._random.uniform(low_s, high_s)
        while self.loss and self._random.random() < self.loss:
            delay_s += RETRANSMISSION_S + self._random.uniform(low_s, high_s)
        if self.bandwidth is not None:
            now = asyncio.get_running_loop().time()
            source.uplink_free_at = max(now, source.uplink_free_at) + size_bytes / self.bandwidth
            delay_s += source.uplink_free_at - now
        return delay_s

    def is_cut(self, source: Host, target: Host) -> bool:
        """Whether packets from `source` to `target` are held up."""
        if source is target:
            return False
        groups = self._group_of
        if groups is not None and (source.name not in groups or groups[source.name] != groups.get(target.name)):
            return True
        return (source.name, target.name) in self._cuts

    def hops(self, source: Host, target: Host, relays: Sequence[str] = ()) -> list[Host]:
        """The hosts that packets pass now, both ends included: directly, else by a relay; none if there is no way."""
        if not self.is_cut(source, target):
            return [source, target]
        for url in relays:
            relay = self._hosts.get(self._relays.get(url, ""))
            if relay is not None and not self.is_cut(source, relay) and not self.is_cut(relay, target):
                return [source, relay, target]
        return []

    def relay_at(self, url: str) -> Host:
        """The host of a relay that runs."""
        return self._hosts[self._relays[url]]

    def reaches_relay(self, host: Host, url: str) -> bool:
        """Whether a relay of that URL runs and this host gets there."""
        relay = self._hosts.get(self._relays.get(url, ""))
        return relay is not None and not self.is_cut(host, relay) and not self.is_cut(relay, host)

    def waiting_at(self, url: str, peer: PeerId) -> SimulatedTransport | None:
        """The transport of a peer that is in touch with a relay."""
        for host in self._hosts.values():
            for transport in host.transports.values():
                if transport.peer_id == peer and url in transport.relays():
                    return transport
        return None

    def listener(self, source: Host, address: SocketAddress) -> SimulatedTransport | None:
        """Who is bound to `address`, as seen from `source`."""
        if address.host.is_loopback:
            return source.transports.get(address.port)
        for host in self._hosts.values():
            if host.address == str(address.host):
                return host.transports.get(address.port)
        return None

    def join(
        self,
        dialler: SimulatedTransport,
        listener: SimulatedTransport,
        protocol: bytes,
        relays: Sequence[str],
    ) -> SimulatedConnection:
        """A new connection; the listener's end is offered to it when the first packet arrives."""
        there = self._pipe(dialler.host, listener, relays)
        back = self._pipe(listener.host, dialler, relays)
        near = SimulatedConnection(dialler, listener, protocol, there, is_dialler=True)
        far = SimulatedConnection(listener, dialler, protocol, back, is_dialler=False)
        near.joined(far)
        far.joined(near)
        self._ends[near] = self._ends[far] = lambda: (
            not (self.hops(dialler.host, listener.host, relays) and self.hops(listener.host, dialler.host, relays))
        )
        near.tell(listener.offer)
        return near

    def ended(self, end: SimulatedConnection) -> None:
        """One end of a connection is over."""
        self._ends.pop(end, None)
        self._stop_idle_timer(end)
        self._review([end.far])

    def _pipe(self, source: Host, target: SimulatedTransport, relays: Sequence[str]) -> Pipe:
        address = (target.addresses() or [""])[0]

        def delay_s(size_bytes: int) -> float:
            hops = self.hops(source, target.host, relays) or [source, target.host]
            return sum(self.delay_s(one, other, size_bytes) for one, other in pairwise(hops))

        def way() -> Way:
            if len(self.hops(source, target.host, relays)) == len("ABC"):
                return RouteKind.RELAYED, relays[0]
            return RouteKind.DIRECT, address

        return Pipe(delay_s, lambda: not self.hops(source, target.host, relays), self._held.append, way)

    def _review(self, ends: Sequence[SimulatedConnection]) -> None:
        """After a change: starts and stops idle timers, and lets held packets go."""
        loop = asyncio.get_running_loop()
        for end in ends:
            if end not in self._ends:
                continue
            is_cut = self._ends[end]
            if not (end.is_far_gone or is_cut()):
                self._stop_idle_timer(end)
            elif end not in self._idle_timers:
                self._idle_timers[end] = loop.call_later(IDLE_S_MAX, end.ended, "timed out")
        held, self._held[:] = list(self._held), []
        for pipe in held:
            if not pipe.resume():
                self._held.append(pipe)

    def _stop_idle_timer(self, end: SimulatedConnection) -> None:
        timer = self._idle_timers.pop(end, None)
        if timer is not None:
            timer.cancel()


class SimulatedTransport:
    """A peer's place on the simulated network; see `croft.ports.Transport`."""

    def __init__(
        self, network: SimulatedNetwork, host: Host, secret_key: bytes, protocols: Sequence[bytes], port: int
    ) -> None:
        if port in host.transports:
            raise Failed(
                f"UDP port {port} is taken by another program",
                remedy="Stop that program, or choose another port to listen on.",
            )
        self.host = host
        self.port = port or max([FIRST_PORT, *host.transports]) + 1
        host.transports[self.port] = self
        self._network = network
        self._peer_id = peer_id_of(secret_key)
        self._protocols = tuple(protocols)
        self._connections: dict[SimulatedConnection, None] = {}
        self._offered: deque[SimulatedConnection] = deque()
        self._changed = Signal()
        self._is_closed = False
        self._external: dict[str, None] = {}
        self._relays: list[str] = []

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> list[str]:
        own = [f"{self.host.address}:{self.port}", *self._external, f"127.0.0.1:{self.port}"]
        return [] if self._is_closed else own

    async def add_address(self, address: str) -> None:
        parsed = SocketAddress.parse(address)
        if parsed is not None and parsed.is_dialable:
            self._external[str(parsed)] = None

    async def remove_address(self, address: str) -> None:
        self._external.pop(address, None)

    async def use_relays(self, relays: Sequence[RelayAccess]) -> None:
        self._relays = [relay.url for relay in relays]

    async def reaches(self, peer: PeerId, address: str, protocol: bytes, timeout_s: float) -> bool:
        target = SocketAddress.parse(address)
        listener = self._network.listener(self.host, target) if target is not None else None
        if listener is None or listener.peer_id != peer or not listener.speaks(protocol):
            await asyncio.sleep(timeout_s)
            return False
        return await self._round_trip(listener)

    def relays(self) -> list[str]:
        """The first one that can be reached."""
        reached = [url for url in self._relays if self._network.reaches_relay(self.host, url)]
        return [] if self._is_closed else reached[:1]

    async def dial(
        self,
        peer: PeerId,
        addresses: Sequence[str],
        protocol: bytes,
        timeout_s: float,
        relays: Sequence[RelayAccess] = (),
    ) -> SimulatedConnection:
        candidates = dialling.candidates(
            peer,
            addresses,
            own_id=self._peer_id,
            own_addresses=self.addresses(),
            is_closed=self._is_closed,
            has_relay=bool(relays),
        )
        urls = [relay.url for relay in relays]
        tried = [*candidates, *urls]
        for old in [connection for connection in self._connections if connection.remote == peer]:
            old.close(CODE_REPLACED, "replaced by a new connection")
        try:
            async with asyncio.timeout(timeout_s):
                listener = await self._find(peer, candidates, urls)
        except TimeoutError:
            raise dialling.no_answer(peer, tried, timeout_s) from None
        if self._is_closed:
            raise dialling.failed(peer, tried, "this peer is shutting down")
        if not listener.speaks(protocol):
            raise dialling.no_common_protocol(peer)
        connection = self._network.join(self, listener, protocol, urls)
        self._connections[connection] = None
        return connection

    async def _find(
        self, peer: PeerId, candidates: Sequence[SocketAddress], relays: Sequence[str]
    ) -> SimulatedTransport:
        """Who answers with the right key, after a round trip; waits while nobody answers at all."""
        while True:
            is_wrong = False
            for address in candidates:
                listener = self._network.listener(self.host, address)
                if listener is None or not await self._round_trip(listener):
                    continue
                if listener.peer_id == peer:
                    return listener
                is_wrong = True
            for url in relays:
                waiting = self._network.waiting_at(url, peer)
                if waiting is not None and self._network.reaches_relay(self.host, url):
                    await asyncio.sleep(2 * self._network.delay_s(self.host, waiting.host, 0))
                    return waiting
            if is_wrong:
                raise dialling.wrong_peer(peer, candidates)
            await asyncio.sleep(DIAL_RETRY_S)

    async def _round_trip(self, listener: SimulatedTransport) -> bool:
        """Whether a packet got to the listener and its answer back here."""
        for source, target in ((self.host, listener.host), (listener.host, self.host)):
            await asyncio.sleep(self._network.delay_s(source, target, 0))
            if self._network.is_cut(source, target) or not listener.addresses():
                return False
        return True

    async def accept(self) -> SimulatedConnection | None:
        while not self._is_closed:
            if self._offered:
                connection = self._offered.popleft()
                self._connections[connection] = None
                return connection
            await self._changed.wait()
        return None

    async def close(self) -> None:
        if self._is_closed:
            return
        for connection in [*self._connections, *self._offered]:
            connection.close(CODE_CLOSED, "the peer is shutting down")
        self._leave()

    def crash(self, *, is_loud: bool) -> None:
        """Ends at once; the peers are told only if it is loud about it."""
        for connection in [*self._connections, *self._offered]:
            if is_loud:
                connection.close(CODE_CLOSED, "")
            else:
                connection.vanished()
        self._leave()

    def speaks(self, protocol: bytes) -> bool:
        """Whether connections of that protocol are welcome."""
        return protocol in self._protocols

    def offer(self, connection: SimulatedConnection) -> None:
        """A connection that another peer dialled."""
        if self._is_closed or len(self._offered) >= ACCEPTED_MAX:
            connection.close(CODE_BUSY, "busy")
            return
        self._offered.append(connection)
        self._changed.fire()

    def forget(self, connection: SimulatedConnection) -> None:
        """A connection is over."""
        self._connections.pop(connection, None)
        if connection in self._offered:
            self._offered.remove(connection)
        self._network.ended(connection)

    def _leave(self) -> None:
        self._is_closed = True
        self.host.transports.pop(self.port, None)
        self._offered.clear()
        self._changed.fire()
