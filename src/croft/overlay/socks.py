"""Decides what the bytes of a SOCKS client mean (SOCKS5, RFC 1928; CONNECT by name, without authentication).

Sans-IO: bytes go in, effects come out. Names are those of peers, and nothing else can be reached: an IP address is
refused, and so are BIND and UDP ASSOCIATE.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

VERSION = 5
NO_AUTHENTICATION = 0
NO_METHOD = 0xFF
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4
SUFFIX = ".croft"
REQUEST_HEADER_BYTES = 4
HANDSHAKE_BYTES_MAX = 600


class Reply(enum.IntEnum):
    """The answers of RFC 1928, section 6."""

    SUCCEEDED = 0
    FAILED = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Connect:
    """The client wants this port of this peer; answer by `reply`. `early` is what it sent without waiting for that."""

    peer: str
    port: int
    early: bytes = b""


@dataclass(frozen=True, slots=True)
class Hang:
    """Close the connection: the client was told why, or does not speak SOCKS5."""

    reason: str


Effect = Send | Connect | Hang


class SocksServer:
    """One client's handshake. After `Connect`, nothing more is fed; the client waits for the reply."""

    def __init__(self) -> None:
        self._buffer = b""
        self._is_greeted = False
        self._is_over = False

    def feed(self, data: bytes) -> Sequence[Effect]:
        """What to do about some bytes."""
        if self._is_over:
            return []
        self._buffer += data
        if len(self._buffer) > HANDSHAKE_BYTES_MAX:
            return self._hang("too many bytes before the handshake was over")
        effects: list[Effect] = []
        if not self._is_greeted:
            effects.extend(self._greeting())
        if self._is_greeted and not self._is_over:
            effects.extend(self._request())
        return effects

    def _greeting(self) -> list[Effect]:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            return self._hang("not SOCKS5")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return []
        methods, self._buffer = buffer[2 : 2 + buffer[1]], buffer[2 + buffer[1] :]
        if NO_AUTHENTICATION not in methods:
            return [Send(bytes([VERSION, NO_METHOD])), *self._hang("the client insists on authentication")]
        self._is_greeted = True
        return [Send(bytes([VERSION, NO_AUTHENTICATION]))]

    def _request(self) -> list[Effect]:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            return self._hang("not SOCKS5")
        if len(buffer) < REQUEST_HEADER_BYTES + 1:
            return []
        command, kind, length = buffer[1], buffer[3], buffer[4]
        if command != CONNECT:
            return self._refuse(Reply.COMMAND_NOT_SUPPORTED, "only CONNECT is served")
        if kind in (IPV4, IPV6):
            return self._refuse(Reply.NOT_ALLOWED, "only names of peers are served; let the client resolve no names")
        if kind != NAME or length == 0:
            return self._refuse(Reply.ADDRESS_NOT_SUPPORTED, "only names of peers are served")
        end = REQUEST_HEADER_BYTES + 1 + length
        if len(buffer) < end + 2:
            return []
        try:
            name = buffer[REQUEST_HEADER_BYTES + 1 : end].decode()
        except UnicodeDecodeError:
            return self._refuse(Reply.ADDRESS_NOT_SUPPORTED, "the name is not UTF-8")
        self._is_over = True
        peer = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
        return [Connect(peer, int.from_bytes(buffer[end : end + 2], "big"), buffer[end + 2 :])]

    def _refuse(self, code: Reply, reason: str) -> list[Effect]:
        return [Send(reply(code)), *self._hang(reason)]

    def _hang(self, reason: str) -> list[Effect]:
        self._is_over = True
        return [Hang(reason)]


def reply(code: Reply) -> bytes:
    """The answer to a request. The address in it means nothing here and is zero."""
    return bytes([VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])
