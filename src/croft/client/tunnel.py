"""Tunnels held open by this program: a local port, or one connection. Plain sockets: a proxy command starts often."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from croft.client.local_api import not_running
from croft.control.work_messages import (
    FromDaemon,
    JobFailed,
    OpenForward,
    OpenPipe,
    OpenProxy,
    PipeOpened,
    PortOpened,
    TunnelProblem,
)
from croft.errors import CroftError, Unreachable, by_code
from croft.wire import frames
from croft.wire.codec import decode_union, encode

STEP = "local work"
FRAME_BYTES_MAX = 64 << 10


class HeldTunnel:
    """A tunnel that lasts until this is closed. Raises what the daemon answers: Refused, NotFound, Unreachable, Usage.

    Attributes:
        port: the local port; 0 for a single connection.
        connection: for a single connection, its bytes from here on.
    """

    def __init__(self, work_socket: Path, opening: OpenForward | OpenProxy | OpenPipe) -> None:
        self.port = 0
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.connection.connect(str(work_socket))
            self.connection.sendall(frames.frame(encode(opening)))
            match self._receive():
                case PortOpened(port):
                    self.port = port
                case PipeOpened():
                    pass
                case other:
                    raise AssertionError(f"{type(other).__name__} in answer to a tunnel")
        except (FileNotFoundError, ConnectionRefusedError):
            self.close()
            raise not_running() from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the tunnel. Idempotent."""
        self.connection.close()

    def problems(self) -> Iterator[CroftError]:
        """What fails while the tunnel lasts, connection by connection. Raises Unreachable once the daemon ends."""
        while True:
            match self._receive():
                case TunnelProblem(code, message, remedy):
                    yield by_code(code, message, remedy)
                case other:
                    raise AssertionError(f"{type(other).__name__} in a tunnel")

    def _receive(self) -> FromDaemon:
        size = int.from_bytes(self._exactly(frames.HEADER_BYTES), "big")
        assert size <= FRAME_BYTES_MAX, "the daemon says little about tunnels"
        message: FromDaemon = decode_union(self._exactly(size), FromDaemon, step=STEP)
        if isinstance(message, JobFailed):
            raise by_code(message.code, message.message, message.remedy)
        return message

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self.connection.recv(size - len(data))
            except OSError:
                part = b""
            if not part:
                raise Unreachable("the daemon ended, and the tunnel with it", remedy="Start it with `croft up`.")
            data += part
        return data
