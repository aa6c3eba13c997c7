"""Decides which services of this machine may be reached, by whom, and how many connections each consumer may hold.

Sans-IO: it is asked, and answers; nothing here reads a clock or touches a socket. Whoever is not granted a service
hears the same as if it did not exist.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from croft.errors import Busy, NotFound, Refused, Usage
from croft.model.ids import CommunityId, PeerId, TwinId

EXPOSURES_MAX = 64
GRANTEES_MAX = 32
CONNECTIONS_MAX = 512
CONNECTIONS_PER_CONSUMER_MAX = 64
PORT_MAX = 65_535
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
WELL_KNOWN = {22: "ssh"}
"""Services whose name follows from their port, where the owner gives none."""


class TunnelProtocol(enum.StrEnum):
    """What a service speaks."""

    TCP = "tcp"
    UDP = "udp"


class GranteeKind(enum.StrEnum):
    """To what a service is granted."""

    TWIN = "twin"
    PEER = "peer"
    COMMUNITY = "community"


@dataclass(frozen=True, slots=True)
class Grantee:
    """A person with all devices, one device, or everybody in a community."""

    kind: GranteeKind
    id: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """A port on the loopback interface, its name for others, and who may reach it. `expires_at` in Unix seconds."""

    name: str
    port: int
    protocol: TunnelProtocol
    grantees: tuple[Grantee, ...]
    created_at: float
    expires_at: float | None = None

    def is_over(self, now: float) -> bool:
        """Whether its time has passed."""
        return self.expires_at is not None and now >= self.expires_at


class Consumer(Protocol):
    """Who asks; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...

    @property
    def communities(self) -> frozenset[CommunityId]: ...


@dataclass(slots=True)
class _Connection:
    exposure: Exposure
    consumer: Consumer


@dataclass(slots=True)
class Exposures:
    """Everything that this peer exposes, and the connections to it. `rows` are what was saved before a restart."""

    rows: dict[str, Exposure] = field(default_factory=dict)
    _connections: dict[int, _Connection] = field(default_factory=dict)
    _next: int = 1

    @classmethod
    def of(cls, rows: Iterable[Exposure]) -> Exposures:
        """From what was saved."""
        return cls({row.name: row for row in rows})

    # --- what the owner does -----------------------------------------------------------------------------------------

    def expose(self, exposure: Exposure) -> list[int]:
        """Exposes a service, in the place of one of the same name; returns the connections that are to be ended.

        Raises Usage if it is not fit to be one, Busy if there are too many.
        """
        if not _NAME.fullmatch(exposure.name) or (exposure.name.isdigit() and exposure.name != str(exposure.port)):
            raise Usage(
                f"`{exposure.name}` is no name for a service",
                remedy="Use up to 32 small letters, digits and dashes, and not the number of another port.",
            )
        if not 0 < exposure.port <= PORT_MAX:
            raise Usage(f"{exposure.port} is not a port", remedy=f"Give a number from 1 to {PORT_MAX}.")
        if not 0 < len(exposure.grantees) <= GRANTEES_MAX:
            raise Usage(
                f"a service is exposed to one at least and {GRANTEES_MAX} at most",
                remedy="Name whom by `--to`; a community counts as one.",
            )
        if exposure.name not in self.rows and len(self.rows) >= EXPOSURES_MAX:
            raise Busy(f"{EXPOSURES_MAX} services are exposed already", remedy="Remove one: `croft expose remove`.")
        self.rows[exposure.name] = exposure
        return [
            number
            for number, connection in self._connections.items()
            if connection.exposure.name == exposure.name
            and not (_is_same_service(connection.exposure, exposure) and _grants(exposure, connection.consumer))
        ]

    def remove(self, name: str) -> tuple[Exposure, list[int]]:
        """Exposes a service no more; it, and the connections that are to be ended. Raises NotFound."""
        exposure = self.rows.get(name) or next((row for row in self.rows.values() if str(row.port) == name), None)
        if exposure is None:
            raise NotFound(f"no service `{name}` is exposed here", remedy="See them: `croft expose list`.")
        del self.rows[exposure.name]
        return exposure, self._connections_to(exposure.name)

    def all(self) -> list[Exposure]:
        """Every exposed service, by name."""
        return sorted(self.rows.values(), key=lambda row: row.name)

    def connections(self, name: str) -> int:
        """How many connections a service has."""
        return len(self._connections_to(name))

    # --- what consumers do -------------------------------------------------------------------------------------------

    def ask(self, consumer: Consumer, service: str, protocol: str, now: float) -> Exposure:
        """The service of that name or port, if it is for this consumer. Raises Refused."""
        for row in self.rows.values():
            is_meant = service in (row.name, str(row.port)) and row.protocol == protocol
            if is_meant and not row.is_over(now) and _grants(row, consumer):
                return row
        raise Refused(
            f"it exposes no {protocol} service `{service}` to this peer",
            remedy=f"Its owner exposes one by: croft expose {_command(service, protocol)} --to YOU",
        )

    def connect(self, consumer: Consumer, service: str, protocol: str, now: float) -> tuple[int, Exposure]:
        """Lets a consumer in: the number of the connection, and to what. Raises Refused, Busy."""
        exposure = self.ask(consumer, service, protocol, now)
        held = sum(connection.consumer.peer == consumer.peer for connection in self._connections.values())
        if held >= CONNECTIONS_PER_CONSUMER_MAX or len(self._connections) >= CONNECTIONS_MAX:
            raise Busy(f"this peer holds {held} tunnels there, which is all it may", remedy="Close some of them.")
        number = self._next
        self._next += 1
        self._connections[number] = _Connection(exposure, consumer)
        return number, exposure

    def disconnected(self, number: int) -> None:
        """A connection is over. Idempotent."""
        self._connections.pop(number, None)

    def expire(self, now: float) -> tuple[list[Exposure], list[int]]:
        """Drops services whose time has passed; they, and the connections that are to be ended."""
        over = [row for row in self.all() if row.is_over(now)]
        for row in over:
            del self.rows[row.name]
        return over, [number for row in over for number in self._connections_to(row.name)]

    def _connections_to(self, name: str) -> list[int]:
        return [number for number, connection in self._connections.items() if connection.exposure.name == name]


def default_name(port: int) -> str:
    """What a service is called whose owner gives no name."""
    return WELL_KNOWN.get(port, str(port))


def _grants(exposure: Exposure, consumer: Consumer) -> bool:
    for grantee in exposure.grantees:
        match grantee.kind:
            case GranteeKind.TWIN:
                is_meant = grantee.id == consumer.twin
            case GranteeKind.PEER:
                is_meant = grantee.id == consumer.peer
            case GranteeKind.COMMUNITY:
                is_meant = grantee.id in consumer.communities
        if is_meant:
            return True
    return False


def _is_same_service(one: Exposure, other: Exposure) -> bool:
    return (one.port, one.protocol) == (other.port, other.protocol)


def _command(service: str, protocol: str) -> str:
    ports = {name: str(port) for port, name in WELL_KNOWN.items()}
    port = ports.get(service, service if service.isdigit() else "PORT")
    named = "" if service.isdigit() or service in ports else f" --name {service}"
    return port + ("/udp" if protocol == TunnelProtocol.UDP else "") + named
