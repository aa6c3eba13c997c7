"""Connections by public key over QUIC: `croft.ports.Transport` on the iroh wheel.

Guarantees on top of the binding: whatever may be cancelled loses no data, because a native await is never
cancelled but kept and picked up by the next call; everything is bounded; every failure names the peer and the
step. No relay and no discovery host is contacted: only the addresses handed to `dial` and, which the wheel does not
let one turn off, the local network's router, asked by multicast for a port mapping (UPnP).

Not done here: heartbeats (a peer that vanishes without a word is noticed only after about half a minute), the
tie-break between two connections of one pair, and authorisation. They belong to the overlay.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from iroh import iroh_ffi as iroh

from croft.adapters import dialling, iroh_copy, iroh_endpoint, native_calls
from croft.adapters.arrivals import Arrivals, Verdict, source_of
from croft.adapters.native_calls import NativeCall
from croft.adapters.socket_addresses import SocketAddress, best_first
from croft.errors import ConnectionLost, Failed, Unreachable
from croft.model.ids import PeerId, short
from croft.ports import Route, RouteKind

T = TypeVar("T")

log = logging.getLogger(__name__)

ANY_HOST = "0.0.0.0"
READ_BYTES_MIN = 64 << 10
READ_BYTES_MAX = 1 << 20
WRITE_BYTES_MAX = 1 << 20
READY_IN_A_ROW_MAX = 32
"""After so many calls that were ready at once the event loop gets a turn: a busy stream starves nobody."""
STREAMS_MAX = 512
"""Streams that the other side may have open at once on one connection."""
CONNECTION_WINDOW_BYTES = 64 << 20
"""What the other side may send on one connection, all streams together, before this side has read it."""
HANDSHAKES_MAX = 256
HANDSHAKE_S_MAX = 10.0
DROP_TOLD_EVERY_S = 10.0
ACCEPTED_MAX = 256
"""Connections that wait for `accept`; further ones are closed at once."""
CLOSE_S_MAX = 3.0
REASON_BYTES_MAX = 1_000

CODE_CLOSED = 0
CODE_BUSY = 1
CODE_REPLACED = 2
CODE_ABORTED = 3

_CLOSED_BY_PEER = re.compile(r"closed by peer: (?P<reason>.*) \(code \d+\)", re.DOTALL)
_BARE_CLOSE = re.compile(r"closed by peer: \d+")


def _keep(call: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Starts a native call that outlives the cancellation of whoever waits for it."""
    task = asyncio.create_task(call, name=name)
    task.add_done_callback(_mark_retrieved)
    return task


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def _settled(task: asyncio.Task[Any]) -> None:
    """Waits until `task` is done and never cancels it."""
    if not task.done():
        await asyncio.wait({task})


class IrohStream:
    """One QUIC stream; see `croft.ports.Stream`."""

    def __init__(self, native: Any, connection: IrohConnection) -> None:
        self._sender = native.send()
        self._receiver = native.recv()
        self._connection = connection
        self._buffer = b""
        self._position = 0
        self._read_bytes = READ_BYTES_MIN
        self._reading: NativeCall[bytes] | None = None
        self._writing: NativeCall[None] | None = None
        self._ready_in_a_row = 0
        self._unsent = memoryview(b"")
        self._is_at_end = False
        self._is_finished = False
        self._is_aborted = False
        connection.holds(self)

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes, at most `size_bytes_max`; `b""` once the other side has finished.

        Raises:
            ConnectionLost: the stream was aborted by either side, or the connection is gone.
        """
        assert size_bytes_max > 0
        if self._position == len(self._buffer):
            received = await self._receive()
            if len(received) <= size_bytes_max:
                return received
            self._buffer, self._position = received, 0
        start = self._position
        part = self._buffer[start : start + size_bytes_max]
        self._position = start + len(part)
        if self._position == len(self._buffer):
            self._buffer, self._position = b"", 0
        return part

    async def _receive(self) -> bytes:
        if self._is_aborted:
            raise self._connection.lost("read", "the stream was aborted here")
        if self._is_at_end:
            return b""
        if self._reading is None:
            self._reading = NativeCall(self._receiver.read(self._read_bytes))
        call = self._reading
        await self._settled(call)
        self._reading = None
        received: bytes = self._outcome(call, "read")
        self._is_at_end = not received
        # The binding allocates as much as is asked for, so only busy streams ask for much.
        self._read_bytes = READ_BYTES_MAX if len(received) == self._read_bytes else READ_BYTES_MIN
        if len(received) > READ_BYTES_MIN:
            self._read_bytes = READ_BYTES_MAX
        return received

    async def _settled(self, call: NativeCall[Any]) -> None:
        if not call.is_done:
            self._ready_in_a_row = 0
            await call.settled()
            return
        self._ready_in_a_row += 1
        if self._ready_in_a_row >= READY_IN_A_ROW_MAX:
            self._ready_in_a_row = 0
            await asyncio.sleep(0)

    def _outcome(self, call: NativeCall[T], step: str) -> T:
        if self._is_aborted:
            raise self._connection.lost(step, "the stream was aborted here")
        try:
            return call.result()
        except iroh.IrohError as error:
            raise self._connection.lost(step, iroh_endpoint.cause(error)) from None

    async def write(self, data: bytes | memoryview) -> None:
        """Hands over all of `data`, waiting while the other side does not keep up. Raises ConnectionLost."""
        assert not self._is_finished, "nothing may be written after finish"
        await self._settle_write()
        if not len(data):
            return
        if isinstance(data, bytes) and len(data) <= WRITE_BYTES_MAX:
            call = self._sender.write_all(data)
        else:
            self._unsent = memoryview(data).cast("B")
            call = self._write_pieces()
        self._writing = NativeCall(call)
        try:
            await self._settle_write()
        except asyncio.CancelledError:
            # The caller may now change its buffer, and the rest still goes out as it was.
            self._unsent = memoryview(bytes(self._unsent))
            raise

    async def _write_pieces(self) -> None:
        while self._unsent:
            piece = bytes(self._unsent[:WRITE_BYTES_MAX])
            self._unsent = self._unsent[WRITE_BYTES_MAX:]
            await self._sender.write_all(piece)

    async def _settle_write(self) -> None:
        """Waits for the write in progress, which may be one whose caller was cancelled."""
        if self._is_aborted:
            raise self._connection.lost("write", "the stream was aborted here")
        call = self._writing
        if call is None:
            return
        await self._settled(call)
        self._outcome(call, "write")
        if self._writing is call:
            self._writing = None

    async def finish(self) -> None:
        """Half-closes: the other side reads `b""` after the last byte. Idempotent. Raises ConnectionLost."""
        await self._settle_write()
        if self._is_finished:
            return
        # Asked before, not after: a side that has read the end may close at once, and then nothing went wrong here.
        if self._connection.is_closed:
            raise self._connection.lost("finish", "the connection is closed")
        self._is_finished = True
        self._writing = NativeCall(self._sender.finish())
        await self._settle_write()

    def abort(self) -> None:
        """Drops both directions at once, without waiting; the other side sees ConnectionLost. Idempotent."""
        if self._is_aborted:
            return
        self._is_aborted = True
        if self._is_finished and self._is_at_end:
            return  # what was written is still on its way, and the other side shall have it
        self._connection.in_background(self._reset(), "iroh.reset")
        self._buffer, self._position = b"", 0
        for call in (self._reading, self._writing):
            if call is not None:
                call.cancel()  # its data is to be dropped; while it lasts it holds the native stream's lock
        self._reading = self._writing = None

    def release(self) -> None:
        """Lets go of the native stream, which keeps the endpoint's port taken; only once that is closed."""
        self._is_aborted = True
        self._sender = self._receiver = None

    async def _reset(self) -> None:
        with contextlib.suppress(iroh.IrohError):
            await self._sender.reset(CODE_ABORTED)
        with contextlib.suppress(iroh.IrohError):
            await self._receiver.stop(CODE_ABORTED)


class IrohConnection:
    """One QUIC connection; see `croft.ports.Connection`."""

    def __init__(self, native: Any, *, is_dialler: bool, forget: Callable[[IrohConnection], None]) -> None:
        native.set_max_concurrent_bi_streams(STREAMS_MAX)
        native.set_max_concurrent_uni_streams(0)
        native.set_receive_window(CONNECTION_WINDOW_BYTES)
        self._native = native
        self._remote = PeerId(str(native.remote_id()))
        self._protocol = bytes(native.alpn())
        self._is_dialler = is_dialler
        self._forget = forget
        self._reason: str | None = None
        self._accepting: NativeCall[Any] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._streams: weakref.WeakSet[IrohStream] = weakref.WeakSet()
        self._ending = _keep(native.closed(), "iroh.closed")
        self._ending.add_done_callback(self._ended)

    @property
    def remote(self) -> PeerId:
        return self._remote

    @property
    def protocol(self) -> bytes:
        return self._protocol

    @property
    def is_dialler(self) -> bool:
        return self._is_dialler

    @property
    def is_closed(self) -> bool:
        return self._native is None or self._close_reason() is not None

    async def open_stream(self) -> IrohStream:
        """A new stream; the other side sees it once something is written. Raises ConnectionLost."""
        if self.is_closed:
            raise self.lost("open a stream", "the connection is closed")
        # Cancelling this one is harmless: a stream without a byte in it is unknown to the other side.
        try:
            native = await self._native.open_bi()
        except iroh.IrohError as error:
            raise self.lost("open a stream", iroh_endpoint.cause(error)) from None
        return IrohStream(native, self)

    async def accept_stream(self) -> IrohStream:
        """The next stream that the other side opened; safe to cancel. Raises ConnectionLost once closed."""
        while True:
            if self._accepting is None:
                if self._native is None:
                    raise self.lost("accept a stream", "the connection is closed")
                self._accepting = NativeCall(self._native.accept_bi())
            call = self._accepting
            await call.settled()
            if self._accepting is not call:
                continue  # another waiter took it
            self._accepting = None
            try:
                return IrohStream(call.result(), self)
            except iroh.IrohError as error:
                raise self.lost("accept a stream", iroh_endpoint.cause(error)) from None

    def route(self) -> Route:
        """The selected path and what the connection has moved so far. iroh tells round trips in whole ms."""
        paths = self._native.paths() if self._native is not None else []
        sent = sum(path.stats.udp_tx_bytes for path in paths)
        received = sum(path.stats.udp_rx_bytes for path in paths)
        for path in paths:
            if path.is_selected:
                kind = RouteKind.RELAYED if path.is_relay else RouteKind.DIRECT
                return Route(kind, path.remote_addr, path.rtt_ms / 1_000, sent, received)
        return Route(RouteKind.UNKNOWN, sent_bytes=sent, received_bytes=received)

    def close(self, code: int, reason: str) -> None:
        """Closes at once; `reason` (at most 1,000 bytes) reaches the other side. Idempotent."""
        if self.is_closed:
            return
        self._reason = reason
        self._native.close(code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode())
        self._forget(self)

    async def wait_closed(self) -> str:
        """Returns the reason once the connection is closed, by whichever side or by the network."""
        await _settled(self._ending)
        return self._close_reason() or "closed"

    def lost(self, step: str, why: str) -> ConnectionLost:
        """What a waiter on this connection gets to see."""
        return ConnectionLost(f"{short(self._remote)}: {step}: {self._close_reason() or _plain(why)}")

    def in_background(self, call: Coroutine[Any, Any, None], name: str) -> None:
        task = _keep(call, name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def holds(self, stream: IrohStream) -> None:
        """Remembers a stream of this connection for `release`."""
        self._streams.add(stream)

    def release(self) -> None:
        """Lets go of everything native, which keeps the endpoint's port taken; only once that is closed."""
        self._close_reason()
        self._native = None
        for stream in list(self._streams):
            stream.release()

    def _close_reason(self) -> str | None:
        if self._reason is None and self._native is not None:
            cause: str | None = self._native.close_reason()
            if cause is not None:
                self._reason = _cause(cause)
        return self._reason

    def _ended(self, _: asyncio.Task[str]) -> None:
        self._close_reason()
        self._forget(self)


def _cause(text: str) -> str:
    """The reason as the closing side gave it, or what the network says."""
    by_peer = _CLOSED_BY_PEER.fullmatch(text)
    if by_peer:
        return iroh_endpoint.printable(by_peer["reason"])
    if _BARE_CLOSE.fullmatch(text):
        return "closed by the other side"
    return iroh_endpoint.printable(text)


def _plain(why: str) -> str:
    if why.startswith(("Reset(", "Stopped(")):
        return "the other side aborted the stream"
    return iroh_endpoint.printable(why)


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
        self._listening = _keep(self._listen(), "iroh.listen")

    @classmethod
    async def open(cls, secret_key: bytes, protocols: Sequence[bytes], bind: str = f"{ANY_HOST}:0") -> IrohTransport:
        """Binds the UDP address `bind` and listens for `protocols`. Port 0 lets the system choose.

        iroh always opens an IPv6 socket besides, on a port of the system's choice.

        Raises:
            Failed: the address is malformed, foreign or taken.
        """
        assert len(secret_key) == 32, "an Ed25519 secret key has 32 bytes"
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

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: bytes, timeout_s: float) -> IrohConnection:
        """Connects to `peer` at any of `addresses`; closes older connections to it first.

        Loopback addresses are tried only when no other works: they may belong to another peer.

        Raises:
            Unreachable: says at which addresses and why.
        """
        candidates = dialling.candidates(
            peer,
            addresses,
            own_id=self._peer_id,
            own_addresses=self.addresses(),
            is_closed=self._is_closed,
        )
        # A peer that came back on another port cannot be reached while the old connection is open.
        for old in list(self._connections.get(peer, ())):
            old.close(CODE_REPLACED, "replaced by a new connection")
        try:
            async with asyncio.timeout(timeout_s):
                native, apart = await self._connect(peer, candidates, protocol, timeout_s)
        except TimeoutError:
            raise dialling.no_answer(peer, candidates, timeout_s) from None
        except iroh.IrohError as error:
            raise _dial_failed(peer, candidates, iroh_endpoint.cause(error)) from None
        connection = self._register(native, is_dialler=True)
        if apart is not None:
            self._apart[connection] = apart
        return connection

    async def _connect(
        self, peer: PeerId, candidates: Sequence[SocketAddress], protocol: bytes, timeout_s: float
    ) -> tuple[Any, Any]:
        near = [address for address in candidates if address.host.is_loopback]
        far = [address for address in candidates if not address.host.is_loopback]
        if near and far:
            with contextlib.suppress(TimeoutError, iroh.IrohError):
                async with asyncio.timeout(timeout_s / 2):
                    return await self._connect_any(peer, far, protocol)
        return await self._connect_any(peer, near or far, protocol)

    async def _connect_any(self, peer: PeerId, candidates: Sequence[SocketAddress], protocol: bytes) -> tuple[Any, Any]:
        """The native connection and, if it needed one of its own, the endpoint that it runs over."""
        target = iroh.EndpointAddr(iroh.EndpointId.from_string(peer), None, [str(one) for one in candidates])
        try:
            return await self._endpoint.connect(target, protocol), None
        except iroh.IrohError as error:
            if not iroh_endpoint.is_wrong_peer(error):
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
            self._closing = _keep(self._close(), "iroh.close")
        await _settled(self._closing)

    async def _close(self) -> None:
        for handshake in self._handshakes:
            handshake.cancel()
        for connections in list(self._connections.values()):
            for connection in list(connections):
                connection.close(CODE_CLOSED, "the peer is shutting down")
        closing = _keep(self._endpoint.close(), "iroh.close_endpoint")
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

    async def _listen(self) -> None:
        endpoint = self._endpoint
        try:
            while (incoming := await endpoint.accept_next()) is not None and not self._is_closed:
                match await self._judge(incoming):
                    case Verdict.WELCOME:
                        handshake = _keep(self._welcome(incoming), "iroh.handshake")
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


def _dial_failed(peer: PeerId, tried: Sequence[SocketAddress], why: str) -> Unreachable:
    if "invalid peer certificate" in why:
        return dialling.wrong_peer(peer, tried)
    if "known protocol" in why:
        return dialling.no_common_protocol(peer)
    return dialling.failed(peer, tried, iroh_endpoint.printable(why))
