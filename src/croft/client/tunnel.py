"""Tunnels held open by this program: a local port, or one connection. Plain sockets: a proxy command starts often."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from croft.client.work_connection import WorkConnection
from croft.control.work_messages import OpenForward, OpenPipe, OpenProxy, PipeOpened, PortOpened, TunnelProblem
from croft.errors import CroftError, Unreachable, by_code

ENDED = Unreachable("the daemon ended, and the tunnel with it", remedy="Start it with `croft up`.")


class HeldTunnel:
    """A tunnel that lasts until this is closed. Raises what the daemon answers: Refused, NotFound, Unreachable, Usage.

    Attributes:
        port: the local port; 0 for a single connection.
        connection: for a single connection, its bytes from here on.
    """

    def __init__(self, work_socket: Path, opening: OpenForward | OpenProxy | OpenPipe) -> None:
        self.port = 0
        self._work = WorkConnection(work_socket, ENDED)
        self.connection: socket.socket = self._work.socket
        try:
            self._work.send(opening)
            match self._work.receive():
                case PortOpened(port):
                    self.port = port
                case PipeOpened():
                    pass
                case other:
                    raise AssertionError(f"{type(other).__name__} in answer to a tunnel")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the tunnel. Idempotent."""
        self._work.close()

    def problems(self) -> Iterator[CroftError]:
        """What fails while the tunnel lasts, connection by connection. Raises Unreachable once the daemon ends."""
        while True:
            match self._work.receive():
                case TunnelProblem(code, message, remedy):
                    yield by_code(code, message, remedy)
                case other:
                    raise AssertionError(f"{type(other).__name__} in a tunnel")
