"""Addresses of sockets: parsed strictly, ordered by how likely they are to work."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

_PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An IP address and a port; written `1.2.3.4:5` or `[::1]:5`."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @classmethod
    def parse(cls, text: str) -> SocketAddress | None:
        """The address that `text` denotes; None for anything else, names and zone indices included."""
        host, _, port = text.rpartition(":")
        is_version_6 = host.startswith("[") and host.endswith("]")
        if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > _PORT_MAX or "%" in host:
            return None
        try:
            address = ipaddress.ip_address(host[1:-1] if is_version_6 else host)
        except ValueError:
            return None
        return cls(address, int(port)) if (address.version == 6) == is_version_6 else None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.host.version == 6 else f"{self.host}:{self.port}"

    @property
    def is_dialable(self) -> bool:
        """Whether a packet could be sent there at all."""
        host = self.host
        return self.port > 0 and not (host.is_unspecified or host.is_multicast or host.is_link_local)


def best_first(addresses: Iterable[SocketAddress]) -> list[SocketAddress]:
    """Without duplicates; the local network first, then the internet, loopback last; IPv4 before IPv6."""
    return sorted(dict.fromkeys(addresses), key=_rank)


def _rank(address: SocketAddress) -> tuple[bool, bool, int, int, int]:
    host = address.host
    return (host.is_loopback, not host.is_private, host.version, int(host), address.port)
