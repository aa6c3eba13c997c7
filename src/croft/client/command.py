"""One command on some peer, driven from this program: `croft run` and each line of `croft map`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from croft.client.local_api import not_running
from croft.control.socket_stream import SocketStream
from croft.control.work_messages import (
    CommandEnded,
    CommandOutput,
    CommandStarted,
    FromDaemon,
    JobFailed,
    JobOpened,
    OpenCommandJob,
)
from croft.errors import ConnectionLost, Unreachable, by_code
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream


@dataclass(slots=True)
class CommandEvents:
    """Whom to tell what. `on_output(descriptor, data)`: bytes as they come; `on_start(peer_name)`."""

    on_output: Callable[[int, bytes], None]
    on_start: Callable[[str], None] = lambda _: None


async def run_command(work_socket: Path, opening: OpenCommandJob, events: CommandEvents) -> CommandEnded:
    """Runs the command to its end. Cancelling this kills it on its peer.

    Raises:
        Refused: no peer takes it. Unreachable: the daemon is not running, or the peer was lost midway.
        Failed: a file could not be read or written.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(work_socket, limit=4 << 20)
    except (FileNotFoundError, ConnectionRefusedError):
        raise not_running() from None
    try:
        async with MessageStream(SocketStream(reader, writer), step="local work") as messages:
            messages.post(opening)
            while (payload := await messages.receive()) is not None:
                message: FromDaemon = decode_union(payload, FromDaemon, step="local work")
                match message:
                    case JobOpened():
                        pass
                    case CommandStarted(_, name):
                        events.on_start(name)
                    case CommandOutput(descriptor, data):
                        events.on_output(descriptor, data)
                    case CommandEnded():
                        return message
                    case JobFailed(code, text, remedy):
                        raise by_code(code, text, remedy)
                    case _:
                        raise AssertionError(f"{type(message).__name__} in a job of one command")
    except ConnectionLost:
        pass
    finally:
        writer.close()
    raise Unreachable("the daemon ended while the command ran", remedy="Start it with `croft up`, and run it again.")
