"""Wire messages of `tunnel/1`: one stream per TCP connection or UDP flow. Only add: tags are for ever.

The consumer sends `OpenTunnel`, the host answers `TunnelOpened` or `TunnelRefused`; after that the stream carries the
bytes of the connection as they are, or, for UDP, one frame per datagram.
"""

from __future__ import annotations

from croft.wire.codec import Message

TUNNEL_PURPOSE = "tunnel/1"
OPENING_BYTES_MAX = 4 << 10
SERVICE_CHARS_MAX = 64


class OpenTunnel(Message, frozen=True, tag=40):
    """Asks for a service by its name or port. `only_ask`: nothing is to be connected, only the answer is wanted."""

    service: str
    protocol: str
    only_ask: bool = False


class TunnelOpened(Message, frozen=True, tag=41):
    """What follows are the bytes of the connection. `service` is what the host calls it."""

    service: str


class TunnelRefused(Message, frozen=True, tag=42):
    """Not this service, or not for you, or not now."""

    code: str
    message: str
    remedy: str = ""


TunnelAnswer = TunnelOpened | TunnelRefused
