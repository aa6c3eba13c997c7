"""The local API's side of tunnels: each lasts as long as the program's connection to the work socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from croft.control.work_messages import OpenForward, OpenPipe, OpenProxy, PipeOpened, PortOpened, TunnelProblem
from croft.errors import ConnectionLost, CroftError, Usage
from croft.overlay.exposure import TunnelProtocol
from croft.wire.message_stream import MessageStream
from croft.wire.splice import splice

if TYPE_CHECKING:
    from croft.ports import Stream

OnProblem = Callable[[CroftError], None]


class Desk(Protocol):
    """What tunnels ask of the peer. Peers are named as people name them."""

    def forward(
        self, peer: str, service: str, protocol: TunnelProtocol, port: int, on_problem: OnProblem
    ) -> AbstractAsyncContextManager[int]: ...

    def proxy(self, port: int, on_problem: OnProblem) -> AbstractAsyncContextManager[int]: ...

    async def pipe(self, peer: str, service: str) -> Stream: ...


async def serve_port(desk: Desk, opening: OpenForward | OpenProxy, messages: MessageStream) -> None:
    """Keeps a local port open until the program hangs up."""

    def on_problem(error: CroftError) -> None:
        with contextlib.suppress(ConnectionLost):
            messages.post(TunnelProblem(error.code, error.message, error.remedy))

    match opening:
        case OpenForward(peer, service, protocol, port):
            tunnel = desk.forward(peer, service, _protocol(protocol), port, on_problem)
        case OpenProxy(port):
            tunnel = desk.proxy(port, on_problem)
    async with tunnel as opened:
        await messages.send(PortOpened(opened))
        while await messages.receive() is not None:
            pass


async def serve_pipe(desk: Desk, opening: OpenPipe, messages: MessageStream, program: Stream) -> None:
    """Joins the program's connection to a service of a peer."""
    far = await desk.pipe(opening.peer, opening.service)
    try:
        await messages.send(PipeOpened())
        await messages.flush()
        await splice(program, far)
    finally:
        far.abort()


def _protocol(text: str) -> TunnelProtocol:
    try:
        return TunnelProtocol(text)
    except ValueError:
        raise Usage(f"`{text}` is neither tcp nor udp") from None
