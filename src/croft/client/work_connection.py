"""A connection to the daemon's work socket by plain blocking calls: for programs that start often and do one thing."""

from __future__ import annotations

import socket
from pathlib import Path

from croft.client.local_api import not_running
from croft.control.work_messages import FromDaemon, JobFailed
from croft.errors import CroftError, by_code
from croft.wire import frames
from croft.wire.codec import Message, decode_union, encode

STEP = "local work"
FRAME_BYTES_MAX = 4 << 20


class WorkConnection:
    """One connection. Raises Unreachable if the daemon is not running, `ended` once it ends."""

    def __init__(self, work_socket: Path, ended: CroftError) -> None:
        self._ended = ended
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(work_socket))
        except (FileNotFoundError, ConnectionRefusedError):
            self.close()
            raise not_running() from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()

    def send(self, message: Message) -> None:
        """Sends one message. If the daemon hung up, what it said before is raised, or `ended`."""
        try:
            self.socket.sendall(frames.frame(encode(message)))
        except OSError:
            while True:
                self.receive()

    def receive(self) -> FromDaemon:
        """The next message. Raises what the daemon says went wrong."""
        size = int.from_bytes(self._exactly(frames.HEADER_BYTES), "big")
        assert size <= FRAME_BYTES_MAX, "the daemon sends small pieces"
        message: FromDaemon = decode_union(self._exactly(size), FromDaemon, step=STEP)
        if isinstance(message, JobFailed):
            raise by_code(message.code, message.message, message.remedy)
        return message

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self.socket.recv(min(size, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise self._ended
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
