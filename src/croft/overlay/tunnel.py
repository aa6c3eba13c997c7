"""Reaches services that other peers expose: single connections, a local port in their place, a SOCKS port for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, assert_never

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, TimedOut, Unreachable, by_code
from croft.model.ids import PeerId
from croft.overlay import socks
from croft.overlay.exposure import TunnelProtocol
from croft.overlay.flow import Flow
from croft.overlay.tunnel_messages import (
    OPENING_BYTES_MAX,
    TUNNEL_PURPOSE,
    OpenTunnel,
    TunnelAnswer,
    TunnelOpened,
    TunnelRefused,
)
from croft.wire.codec import decode_union
from croft.wire.message_stream import receive_alone, send_alone
from croft.wire.splice import splice

if TYPE_CHECKING:
    from croft.ports import Datagrams, Listener, LocalServices, Stream

log = logging.getLogger(__name__)

STEP = "tunnel"
ANSWER_TIMEOUT_S = 15.0
LOCAL_CONNECTIONS_MAX = 256
"""Connections that one local port of a tunnel serves at a time."""
HANDSHAKE_S_MAX = 10.0

OnProblem = Callable[[CroftError], None]


class Peers(Protocol):
    """What tunnels need of the overlay."""

    def name_of(self, peer: PeerId) -> str: ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable, Refused."""
        ...


class Tunnels:
    """Opens tunnels from this machine."""

    def __init__(self, peers: Peers, local: LocalServices) -> None:
        self._peers = peers
        self._local = local

    async def ask(self, peer: PeerId, service: str, protocol: TunnelProtocol) -> str:
        """What the host calls a service that this peer may reach. Raises Refused, Unreachable."""
        stream, name = await self._open(peer, OpenTunnel(service, protocol, only_ask=True))
        stream.abort()
        return name

    async def open(self, peer: PeerId, service: str, protocol: TunnelProtocol = TunnelProtocol.TCP) -> Stream:
        """A connection to a service. Raises Refused, Unreachable, TimedOut."""
        stream, _ = await self._open(peer, OpenTunnel(service, protocol))
        return stream

    @contextlib.asynccontextmanager
    async def forwarding(
        self, peer: PeerId, service: str, protocol: TunnelProtocol, port: int, on_problem: OnProblem
    ) -> AsyncIterator[int]:
        """A local port that leads to a service, while the block lasts; yields its number. Raises as `ask`, or Failed.

        What fails later, connection by connection, is told by `on_problem`.
        """
        await self.ask(peer, service, protocol)
        match protocol:
            case TunnelProtocol.TCP:

                async def serve(near: Stream) -> None:
                    await splice(near, await self.open(peer, service))

                async with _listening(self._local, port, serve, on_problem) as listener:
                    yield listener.port
            case TunnelProtocol.UDP:
                datagrams = await self._local.datagrams(port)
                async with _alongside(self._forward_datagrams(datagrams, peer, service, on_problem)):
                    try:
                        yield datagrams.port
                    finally:
                        datagrams.close()

    @contextlib.asynccontextmanager
    async def proxying(self, port: int, find: Callable[[str], PeerId], on_problem: OnProblem) -> AsyncIterator[int]:
        """A local SOCKS port that leads to the exposed services of all peers, by their names; yields its number."""

        async def serve(near: Stream) -> None:
            async with asyncio.timeout(HANDSHAKE_S_MAX):
                wanted = await _handshake(near)
            if wanted is None:
                return
            try:
                far = await self.open(find(wanted.peer), str(wanted.port))
            except CroftError as error:
                await near.write(socks.reply(_refusal(error)))
                await near.finish()
                raise
            try:
                await near.write(socks.reply(socks.Reply.SUCCEEDED))
                if wanted.early:
                    await far.write(wanted.early)
            except BaseException:
                far.abort()
                raise
            await splice(near, far)

        async with _listening(self._local, port, serve, on_problem) as listener:
            yield listener.port

    async def _open(self, peer: PeerId, opening: OpenTunnel) -> tuple[Stream, str]:
        name = self._peers.name_of(peer)
        stream = await self._peers.open_stream(peer, TUNNEL_PURPOSE)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await send_alone(stream, opening)
                payload = await receive_alone(stream, step=STEP, frame_bytes_max=OPENING_BYTES_MAX)
            answer: TunnelAnswer = decode_union(payload, TunnelAnswer, step=STEP)
            match answer:
                case TunnelRefused(code, message, remedy):
                    raise by_code(code, f"{name}: {message}", remedy)
                case TunnelOpened(service):
                    return stream, service
                case _:
                    assert_never(answer)
        except TimeoutError:
            stream.abort()
            raise TimedOut(f"{name} did not answer for service `{opening.service}`", remedy="Try again.") from None
        except (ConnectionLost, PeerMisbehaved) as lost:
            stream.abort()
            raise Unreachable(
                f"the link to {name} ended while service `{opening.service}` was asked for: {lost}",
                remedy="See who is here: `croft peers`.",
            ) from None
        except BaseException:
            stream.abort()
            raise

    async def _forward_datagrams(self, datagrams: Datagrams, peer: PeerId, service: str, on_problem: OnProblem) -> None:
        """Gives each local port that sends a flow of its own."""
        flows: dict[int, Flow | None] = {}

        async def run_flow(port: int, first: bytes) -> None:
            try:
                stream = await self.open(peer, service, TunnelProtocol.UDP)
                flow = flows[port] = Flow(stream, lambda datagram: datagrams.send(datagram, port))
                flow.push(first)
                await flow.run()
            except CroftError as error:
                on_problem(error)
            except PeerMisbehaved as fault:
                log.warning("peer %s: %s", self._peers.name_of(peer), fault)
            finally:
                del flows[port]

        async with asyncio.TaskGroup() as tasks:
            while True:
                datagram, port = await datagrams.receive()
                if (flow := flows.get(port)) is not None:
                    flow.push(datagram)
                elif port not in flows and len(flows) < LOCAL_CONNECTIONS_MAX:
                    flows[port] = None  # what comes while the stream opens is lost, as UDP may
                    tasks.create_task(run_flow(port, datagram), name=f"tunnel.flow.{port}")


async def _handshake(near: Stream) -> socks.Connect | None:
    """Speaks SOCKS until the client says what it wants; None if it wants nothing that is served."""
    server = socks.SocksServer()
    while data := await near.read(socks.HANDSHAKE_BYTES_MAX):
        for effect in server.feed(data):
            match effect:
                case socks.Send(answer):
                    await near.write(answer)
                case socks.Connect():
                    return effect
                case socks.Hang(reason):
                    log.info("a SOCKS client is turned away: %s", reason)
                    await near.finish()
                    return None
                case _:
                    assert_never(effect)
    return None


def _refusal(error: CroftError) -> socks.Reply:
    match error.code:
        case "refused" | "busy" | "usage":
            return socks.Reply.NOT_ALLOWED
        case "not_found" | "timed_out":
            return socks.Reply.HOST_UNREACHABLE
        case "unreachable":
            return socks.Reply.CONNECTION_REFUSED
        case _:
            return socks.Reply.FAILED


@contextlib.asynccontextmanager
async def _listening(
    local: LocalServices, port: int, serve: Callable[[Stream], Awaitable[None]], on_problem: OnProblem
) -> AsyncIterator[Listener]:
    """Serves every connection to a local port while the block lasts, then drops them."""
    listener = await local.listen(port)

    async def serve_one(near: Stream) -> None:
        try:
            await serve(near)
        except CroftError as error:
            on_problem(error)
        except (ConnectionLost, TimeoutError):
            pass
        finally:
            near.abort()

    async def accept() -> None:
        serving: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                near = await listener.accept()
                if len(serving) >= LOCAL_CONNECTIONS_MAX:
                    near.abort()
                    continue
                task = tasks.create_task(serve_one(near), name="tunnel.connection")
                serving.add(task)
                task.add_done_callback(serving.discard)

    try:
        async with _alongside(accept()):
            yield listener
    finally:
        listener.close()


@contextlib.asynccontextmanager
async def _alongside(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
