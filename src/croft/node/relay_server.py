"""The relay: a process of its own, so that neither its load nor its death touches the peer that offers it.

It speaks iroh's relay protocol over plain HTTP and WebSocket, and does as the core `overlay.relay` says. The daemon
tells it over stdin whom to admit, and hears over stdout what was used; when stdin ends, so does the process.

Everything here is synchronous between two packets: bytes in, core, bytes out. A client that does not keep up with what
is sent to it loses frames, as on any network.
"""

from __future__ import annotations

import argparse
import asyncio
import http
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Final, assert_never, cast

import uvloop
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from croft.overlay import relay as core
from croft.overlay.relay_rates import Rates
from croft.wire.codec import decode, encode
from croft.wire.frames import FrameReader, frame
from croft.wire.relay_orders import ORDER_BYTES_MAX, Order, Report

log = logging.getLogger(__name__)

SUBPROTOCOLS: Final = [Subprotocol("iroh-relay-v2"), Subprotocol("iroh-relay-v1")]
CONNECTIONS_MAX: Final = 2_048
OUT_BYTES_MAX: Final = 4 << 20
"""What may wait for a client that reads slowly; frames above that are dropped."""
REPORT_EVERY_S: Final = 0.5
HTTP_S_MAX: Final = 5.0
BACKLOG: Final = 256


class _Connection(asyncio.Protocol):
    """One TCP connection: HTTP first, then frames for the core."""

    def __init__(self, server: RelayServer, number: int) -> None:
        self._server = server
        self._number = number
        self._protocol = ServerProtocol(
            subprotocols=SUBPROTOCOLS, max_size=core.FRAME_BYTES_MAX, logger=log.getChild("websocket")
        )
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._resuming: asyncio.TimerHandle | None = None
        self._is_client = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        opened = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        opened.set_write_buffer_limits(high=OUT_BYTES_MAX)
        self._deadline = asyncio.get_running_loop().call_later(HTTP_S_MAX, opened.abort)
        self._transport = opened

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._asked(event)
            elif isinstance(event, Frame):
                self._framed(event)
        self._flush()
        if self._protocol.state is State.CLOSED or self._protocol.handshake_exc is not None:
            self.end()

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._deadline, self._resuming):
            if timer is not None:
                timer.cancel()
        self._transport = None
        self._server.left(self._number)

    def transmit(self, payload: bytes) -> None:
        """Sends one frame, or drops it if the client does not keep up."""
        transport = self._transport
        if transport is None or self._protocol.state is not State.OPEN:
            return
        if transport.get_write_buffer_size() + len(payload) > OUT_BYTES_MAX:
            return
        self._protocol.send_binary(payload)
        self._flush()

    def hold(self, seconds: float) -> None:
        """Reads nothing for a while."""
        if self._transport is not None and self._resuming is None:
            self._transport.pause_reading()
            self._resuming = asyncio.get_running_loop().call_later(seconds, self._resume)

    def end(self) -> None:
        """Closes, after what is waiting to be sent."""
        if self._transport is not None:
            self._transport.close()

    def _resume(self) -> None:
        self._resuming = None
        if self._transport is not None:
            self._transport.resume_reading()

    def _asked(self, request: Request) -> None:
        path = request.path.partition("?")[0]
        if path == "/relay":
            response = self._protocol.accept(request)
            self._protocol.send_response(response)
            if response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
                return
            self._is_client = True
            if self._deadline is not None:
                self._deadline.cancel()
            bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            self._server.connected(self._number, self._address(), bearer)
            return
        status = {"/ping": http.HTTPStatus.OK, "/generate_204": http.HTTPStatus.NO_CONTENT}.get(path)
        status = status or http.HTTPStatus.NOT_FOUND
        headers = Headers({"Content-Length": "0", "Connection": "close"})
        self._protocol.send_response(Response(status.value, status.phrase, headers))

    def _framed(self, event: Frame) -> None:
        if event.opcode is Opcode.BINARY or event.opcode is Opcode.CONT:
            self._parts.append(bytes(event.data))
            if event.fin:
                whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts = []
                self._server.received(self._number, whole)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        for data in self._protocol.data_to_send():
            if data:
                transport.write(data)
            else:
                transport.close()
                return

    def _address(self) -> str:
        assert self._transport is not None
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if name else ""


class RelayServer:
    """Connections and the core between them."""

    def __init__(self, own: bytes, rates: Rates) -> None:
        self._loop = asyncio.get_running_loop()
        self._core = core.Relay(own, rates, self._loop.time(), time.time())
        self._connections: dict[int, _Connection] = {}
        self._next = 0

    def accept(self) -> asyncio.Protocol:
        """Makes the protocol of a new connection; one too many is ended by its own deadline, unheard."""
        self._next += 1
        connection = _Connection(self, self._next)
        if len(self._connections) >= CONNECTIONS_MAX:
            return _Refusal()
        self._connections[self._next] = connection
        return connection

    def connected(self, number: int, address: str, bearer: str) -> None:
        """A WebSocket is open."""
        challenge = os.urandom(core.CHALLENGE_BYTES)
        self._perform(self._core.handle(core.Connected(number, address, bearer, challenge, self._loop.time())))

    def received(self, number: int, payload: bytes) -> None:
        """A frame came."""
        self._perform(self._core.handle(core.Received(number, payload, self._loop.time())))

    def left(self, number: int) -> None:
        """A connection is over."""
        self._connections.pop(number, None)
        self._perform(self._core.handle(core.Left(number)))

    def admit(self, keys: frozenset[bytes]) -> None:
        """Lets in just these."""
        self._perform(self._core.handle(core.Admit(keys)))

    def tick(self) -> None:
        """Time passes."""
        self._perform(self._core.handle(core.Tick(self._loop.time(), time.time())))

    def report(self, port: int) -> Report:
        """What was used so far."""
        usage = [(k, u.received_bytes, u.sent_bytes, u.dropped_frames) for k, u in self._core.usage().items()]
        return Report(port, self._core.connected, usage)

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            connection = self._connections.get(effect.client)
            if connection is None:
                continue
            match effect:
                case core.Transmit(_, payload, at):
                    if at and at > self._loop.time():
                        self._loop.call_at(at, connection.transmit, payload)
                    else:
                        connection.transmit(payload)
                case core.Hold(_, until):
                    connection.hold(max(0.0, until - self._loop.time()))
                case core.Close(_, reason):
                    log.info("closing client %d: %s", effect.client, reason)
                    connection.end()
                case _:
                    assert_never(effect)


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).close()


async def serve(host: str, port: int, own: bytes, rates: Rates) -> None:
    """Runs until stdin ends. Raises OSError if the port is taken."""
    loop = asyncio.get_running_loop()
    server = RelayServer(own, rates)
    listening = await loop.create_server(server.accept, host, port, backlog=BACKLOG)
    bound: int = listening.sockets[0].getsockname()[1]
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    reports = _Reports(server, bound)
    reporting = asyncio.create_task(reports.run(), name="relay.report")
    orders = FrameReader(ORDER_BYTES_MAX, step="relay order")
    try:
        while data := await stdin.read(64 << 10):
            for payload in orders.feed(data):
                server.admit(frozenset(decode(payload, Order, step="relay order").keys))
    finally:
        reporting.cancel()
        listening.close()
        reports.tell()


class _Reports:
    """Tells the daemon what was used: twice a second, and a last time at the end."""

    def __init__(self, server: RelayServer, port: int) -> None:
        self._server = server
        self._port = port
        self._told: Report | None = None

    async def run(self) -> None:
        while True:
            self.tell()
            await asyncio.sleep(REPORT_EVERY_S)
            self._server.tick()

    def tell(self) -> None:
        report = self._server.report(self._port)
        if report != self._told:
            # A pipe to our own daemon: it reads, or is gone.
            sys.stdout.buffer.write(frame(encode(report)))
            sys.stdout.buffer.flush()
            self._told = report


def main() -> None:
    """The process; the daemon starts it."""
    parser = argparse.ArgumentParser(prog="croft.node.relay_server")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--own", required=True, help="The key of the device that offers this relay, in hex.")
    parser.add_argument("--total", type=float, default=0.0, help="Bytes per second in all; 0: no limit.")
    parser.add_argument("--per-client", type=float, default=0.0, help="Bytes per second and client; 0: no limit.")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    rates = Rates(options.total or None, options.per_client or None)
    try:
        uvloop.run(serve(options.host, options.port, bytes.fromhex(options.own), rates))
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)  # noqa: T201 - its parent reads it
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)


if __name__ == "__main__":
    main()
