"""What a daemon and the relay process that it has started tell each other, in frames over stdin and stdout."""

from __future__ import annotations

from typing import Final

from croft.wire.codec import Message

ORDER_BYTES_MAX: Final = 4 << 20
REPORT_BYTES_MAX: Final = 4 << 20


class Order(Message, frozen=True):
    """From the daemon: just these device keys may use the relay."""

    keys: list[bytes]


class Report(Message, frozen=True):
    """To the daemon: the port, the keys connected, and per key the payload bytes from it, to it, and frames dropped."""

    port: int
    connected: int
    usage: list[tuple[bytes, int, int, int]]
