"""Connections by public key over QUIC: `croft.ports.Transport` on the iroh wheel.

Guarantees on top of the binding: whatever may be cancelled loses no data, because a native await is never
cancelled but kept and picked up by the next call; everything is bounded; every failure names the peer and the
step. No host is contacted but the addresses and relays handed to it and, which the wheel does not let one turn off, the
local network's router, asked by multicast for a port mapping (UPnP).

Not done here: heartbeats (a peer that vanishes without a word is noticed only after about half a minute), the
tie-break between two connections of one pair, and authorisation. They belong to the overlay.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

from iroh import iroh_ffi as iroh

from croft.adapters import dialling, iroh_copy, iroh_endpoint, native_calls, native_release
from croft.adapters.arrivals import Arrivals, Verdict, source_of
from croft.adapters.iroh_connection import IrohConnection, keep, settled
from croft.adapters.socket_addresses import SocketAddress, best_first
from croft.errors import Failed, Unreachable
from croft.model.ids import PeerId
from croft.ports import RelayAccess

log = logging.getLogger(__name__)

ANY_HOST = "0.0.0.0"
SECRET_KEY_BYTES = 32
RELAYS_MAX = 4
HANDSHAKES_MAX = 256
HANDSHAKE_S_MAX = 10.0
DROP_TOLD_EVERY_S = 10.0
ACCEPTED_MAX = 256
"""Connections that wait for `accept`; further ones are closed at once."""
CLOSE_S_MAX = 1.0
"""What was connected is closed in milliseconds; a dial that nobody answers would hold the end up for three seconds."""

CODE_CLOSED = 0
CODE_BUSY = 1
CODE_REPLACED = 2


class IrohTransport:
    """Dials and is dialled by public key; see `croft.ports.Transport`. Made by `open`, ended by `close`."""

    def __init__(self, endpoint: Any, secret_key: bytes, source: SocketAddress) -> None:
        self._endpoint: Any = endpoint
        self._secret_key = secret_key
        self._source = source
        self._peer_id = PeerId(str(endpoint.id()))
        self._connections: dict[PeerId, set[IrohConnection]] = {}
        self._apart: dict[IrohConnection, Any] = {}
        self._accepted: asyncio.Queue[IrohConnection | None] = asyncio.Queue(ACCEPTED_MAX)
        self._living: weakref.WeakSet[IrohConnection] = weakref.WeakSet()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._arrivals = Arrivals(asyncio.get_running_loop().time())
        self._drop_told_at = -DROP_TOLD_EVERY_S
        self._external: set[str] = set()
        self._relays: dict[str, RelayAccess] = {}
        self._listening = keep(self._listen(), "iroh.listen")

    @classmethod
    async def open(cls, secret_key: bytes, protocols: Sequence[bytes], bind: str = f"{ANY_HOST}:0") -> IrohTransport:
        """Binds the UDP address `bind` and listens for `protocols`. Port 0 lets the system choose.

        iroh always opens an IPv6 socket besides, on a port of the system's choice.

        Raises:
            Failed: the address is malformed, foreign or taken.
        """
        assert len(secret_key) == SECRET_KEY_BYTES, "an Ed25519 secret key has 32 bytes"
        iroh_copy.install()
        native_calls.install()
        address = SocketAddress.parse(bind)
        if address is None:
            raise Failed(f"`{bind}` is not an address to listen on", remedy="Give it as `0.0.0.0:7117`.")
        endpoint = await iroh_endpoint.bind(secret_key, protocols, address)
        return cls(endpoint, secret_key, SocketAddress(address.host, 0))

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def port(self) -> int:
        """The UDP port in use over IPv4."""
        bound = [SocketAddress.parse(text) for text in self._endpoint.bound_sockets()]
        return next(address.port for address in bound if address and address.host.version == 4)

    def addresses(self) -> Sequence[str]:
        """`ip:port` under which this peer may be reached: LAN first, loopback last."""
        if self._endpoint is None:
            return []
        found = {SocketAddress.parse(text) for text in self._endpoint.addr().direct_addresses()}
        for text in self._endpoint.bound_sockets():
            bound = SocketAddress.parse(text)
            if bound is not None and bound.host.version == 4 and bound.host.is_unspecified:
                found.add(SocketAddress(ipaddress.ip_address("127.0.0.1"), bound.port))
        # The port of the IPv6 socket changes with every start, which on loopback makes it of no use.
        return [
            str(address)
            for address in best_first(address for address in found if address is not None)
            if address.host.version == 4 or not address.host.is_loopback
        ]

    async def add_address(self, address: str) -> None:
        """Counts `ip:port` among this peer's addresses. Idempotent; what is no address is ignored."""
        parsed = SocketAddress.parse(address)
        if self._is_closed or parsed is None or not parsed.is_dialable or str(parsed) in self._external:
            return
        self._external.add(str(parsed))
        with contextlib.suppress(iroh.IrohError):
            await self._endpoint.add_external_addr(str(parsed))

    async def remove_address(self, address: str) -> None:
        """Takes back what `add_address` added. Idempotent."""
        if self._is_closed or address not in self._external:
            return
        self._external.discard(address)
        with contextlib.suppress(iroh.IrohError):
            await self._endpoint.remove_external_addr(address)

    async def use_relays(self, relays: Sequence[RelayAccess]) -> None:
        """Keeps in touch with just these relays."""
        wanted = {relay.url: relay for relay in relays[:RELAYS_MAX]}
        # First the new ones, so that the home relay has somewhere to move to.
        for relay in wanted.values():
            await self._know_relay(relay)
        for url in [url for url in self._relays if url not in wanted]:
            if self._is_closed:
                return
            del self._relays[url]
            with contextlib.suppress(iroh.IrohError):
                await self._endpoint.remove_relay(url)

    async def _know_relay(self, relay: RelayAccess) -> None:
        if self._is_closed or relay.url in self._relays:
            return
        # No address discovery by QUIC: our relays do not speak it, and probing for it takes seconds.
        config = iroh.RelayConfig(url=relay.url, quic_port=None, auth_token=relay.bearer or None)
        try:
            await self._endpoint.insert_relay(config)
        except iroh.IrohError as error:
            log.info("the relay %s cannot be used: %s", relay.url, iroh_endpoint.cause(error))
            return
        self._relays[relay.url] = relay

    async def reaches(self, peer: PeerId, address: str, protocol: bytes, timeout_s: float) -> bool:
        """Whether `peer` answers at `address` to a fresh port and an unknown key."""
        target = SocketAddress.parse(address)
        if self._is_closed or target is None or not target.is_dialable:
            return False
        stranger = await iroh_endpoint.bind(os.urandom(SECRET_KEY_BYTES), [], self._source)
        try:
            async with asyncio.timeout(timeout_s):
                at = iroh.EndpointAddr(iroh.EndpointId.from_string(peer), None, [str(target)])
                native = await stranger.connect(at, protocol)
                native.close(CODE_CLOSED, b"that was all")
                return True
        except (TimeoutError, iroh.IrohError):
            return False
        finally:
            iroh_endpoint.close_soon(stranger)

    def relays(self) -> Sequence[str]:
        """The relay by which others reach this peer now, if any."""
        if self._is_closed or not self._relays:
            return []
        url = self._endpoint.addr().relay_url()
        return [url.rstrip("/")] if url else []

    async def dial(
        self,
        peer: PeerId,
        addresses: Sequence[str],
        protocol: bytes,
        timeout_s: float,
        relays: Sequence[RelayAccess] = (),
    ) -> IrohConnection:
        """Connects to `peer` at any of `addresses` or by any of `relays`; closes older connections to it first.

        Loopback addresses are tried only when no other works: they may belong to another peer. All other ways are
        tried at once, and the best that works is kept.

        Raises:
            Unreachable: says at which addresses and why.
        """
        candidates = dialling.candidates(
            peer,
            addresses,
            own_id=self._peer_id,
            own_addresses=self.addresses(),
            is_closed=self._is_closed,
            has_relay=bool(relays),
        )
        tried = [*candidates, *(relay.url for relay in relays)]
        # A peer that came back on another port cannot be reached while the old connection is open.
        for old in list(self._connections.get(peer, ())):
            old.close(CODE_REPLACED, "replaced by a new connection")
        try:
            async with asyncio.timeout(timeout_s):
                native, apart = await self._connect(peer, candidates, relays, protocol, timeout_s)
        except TimeoutError:
            raise dialling.no_answer(peer, tried, timeout_s) from None
        except iroh.IrohError as error:
            raise _dial_failed(peer, tried, iroh_endpoint.cause(error)) from None
        connection = self._register(native, is_dialler=True)
        if apart is not None:
            self._apart[connection] = apart
        return connection

    async def _connect(
        self,
        peer: PeerId,
        candidates: Sequence[SocketAddress],
        relays: Sequence[RelayAccess],
        protocol: bytes,
        timeout_s: float,
    ) -> tuple[Any, Any]:
        near = [address for address in candidates if address.host.is_loopback]
        far = [address for address in candidates if not address.host.is_loopback]
        ways: list[tuple[Sequence[SocketAddress], RelayAccess | None]] = []
        # The binding takes one relay for each dial.
        if far or relays:
            ways = [(far, relay) for relay in relays[:RELAYS_MAX]] or [(far, None)]
        if near:
            ways.append((near, None))
        for addresses, relay in ways[:-1]:
            with contextlib.suppress(TimeoutError, iroh.IrohError):
                async with asyncio.timeout(timeout_s / len(ways)):
                    return await self._connect_any(peer, addresses, relay, protocol)
        return await self._connect_any(peer, *ways[-1], protocol)

    async def _connect_any(
        self, peer: PeerId, candidates: Sequence[SocketAddress], relay: RelayAccess | None, protocol: bytes
    ) -> tuple[Any, Any]:
        """The native connection and, if it needed one of its own, the endpoint that it runs over."""
        if relay is not None and relay.bearer:
            await self._know_relay(relay)
        url = None if relay is None else relay.url
        target = iroh.EndpointAddr(iroh.EndpointId.from_string(peer), url, [str(one) for one in candidates])
        try:
            return await self._endpoint.connect(target, protocol), None
        except iroh.IrohError as error:
            if not iroh_endpoint.is_wrong_peer(error) or not candidates:
                raise
        endpoint, native = await iroh_endpoint.connect_apart(self._secret_key, self._source, peer, candidates, protocol)
        return native, endpoint

    async def accept(self) -> IrohConnection | None:
        """The next connection that another peer dialled; None once closed. Safe to cancel."""
        if self._is_closed:
            return None
        connection = await self._accepted.get()
        if connection is not None:
            return connection
        if self._accepted.empty():
            self._accepted.put_nowait(None)  # for the next caller
        if not self._is_closed:
            self._listening.result()  # a bug in the listener surfaces here
        return None

    async def close(self) -> None:
        """Closes every connection, then the endpoint, within a few seconds. Idempotent."""
        self._is_closed = True
        if self._closing is None:
            self._closing = keep(self._close(), "iroh.close")
        await settled(self._closing)

    async def _close(self) -> None:
        for handshake in self._handshakes:
            handshake.cancel()
        for connections in list(self._connections.values()):
            for connection in list(connections):
                connection.close(CODE_CLOSED, "the peer is shutting down")
        closing = keep(self._endpoint.close(), "iroh.close_endpoint")
        await asyncio.wait({closing, self._listening}, timeout=CLOSE_S_MAX)
        self._listening.cancel()
        await iroh_endpoint.all_closed(CLOSE_S_MAX)
        # The port stays taken until the last native object is gone, whoever still refers to ours.
        self._endpoint = None
        for connection in list(self._living):
            connection.release()
        while not self._accepted.empty():
            self._accepted.get_nowait()
        self._accepted.put_nowait(None)
        await asyncio.wait({self._listening, *self._handshakes}, timeout=CLOSE_S_MAX)
        native_release.free_dead()

    async def _listen(self) -> None:
        endpoint = self._endpoint
        try:
            while (incoming := await endpoint.accept_next()) is not None and not self._is_closed:
                match await self._judge(incoming):
                    case Verdict.WELCOME:
                        handshake = keep(self._welcome(incoming), "iroh.handshake")
                        self._handshakes.add(handshake)
                        handshake.add_done_callback(self._handshakes.discard)
                    case Verdict.PROVE:
                        await incoming.retry()
                    case Verdict.DROP:
                        await incoming.ignore()
        finally:
            if not self._accepted.full():
                self._accepted.put_nowait(None)

    async def _judge(self, incoming: Any) -> Verdict:
        under_way = len(self._handshakes)
        if under_way >= HANDSHAKES_MAX:
            return Verdict.DROP
        address = await incoming.remote_addr()
        if not address.is_IP():
            return Verdict.WELCOME  # it came by a relay of ours, which has let it in
        host = SocketAddress.parse(address.addr)
        source = "" if host is None or host.host.is_loopback else source_of(host.host)
        is_proven = await incoming.remote_addr_validated()
        now = asyncio.get_running_loop().time()
        verdict = self._arrivals.judge(source, is_proven=is_proven, under_way=under_way, now=now)
        if verdict is Verdict.DROP and now - self._drop_told_at > DROP_TOLD_EVERY_S:
            self._drop_told_at = now
            log.warning("too many connection attempts from %s; %d dropped so far", address.addr, self._arrivals.dropped)
        return verdict

    async def _welcome(self, incoming: Any) -> None:
        """Completes one handshake. Whoever fails at it is nobody yet, so there is no one to name."""
        try:
            async with asyncio.timeout(HANDSHAKE_S_MAX):
                native = await (await incoming.accept()).connect()
        except (TimeoutError, iroh.IrohError):
            return
        if self._accepted.full() or self._is_closed:
            native.close(CODE_BUSY, b"busy")
            return
        self._accepted.put_nowait(self._register(native, is_dialler=False))

    def _register(self, native: Any, *, is_dialler: bool) -> IrohConnection:
        connection = IrohConnection(native, is_dialler=is_dialler, forget=self._forget)
        self._connections.setdefault(connection.remote, set()).add(connection)
        self._living.add(connection)
        return connection

    def _forget(self, connection: IrohConnection) -> None:
        connections = self._connections.get(connection.remote, set())
        connections.discard(connection)
        if not connections:
            self._connections.pop(connection.remote, None)
        apart = self._apart.pop(connection, None)
        if apart is not None:
            iroh_endpoint.close_soon(apart)


def _dial_failed(peer: PeerId, tried: Sequence[object], why: str) -> Unreachable:
    if "invalid peer certificate" in why:
        return dialling.wrong_peer(peer, tried)
    if "known protocol" in why:
        return dialling.no_common_protocol(peer)
    return dialling.failed(peer, tried, iroh_endpoint.printable(why))
