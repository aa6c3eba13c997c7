"""Every seam to the outside, as Protocols.

The daemon gets the real implementations (`croft.adapters`), the simulator its own (`croft.sim`). Both sides of each
seam pass the same tests.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

from croft.model.ids import PeerId
from croft.model.isolation import Isolation

T = TypeVar("T")


# --- the network -----------------------------------------------------------------------------------------------------


class RouteKind(enum.StrEnum):
    """How packets to a peer travel."""

    DIRECT = "direct"
    RELAYED = "relayed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Route:
    """The path in use to a peer. `address` is `ip:port` when direct, the relay's URL when relayed.

    `sent_bytes` and `received_bytes` are all that the connection has moved, headers included; `relayed_…` is the part
    of it that went by relays.
    """

    kind: RouteKind
    address: str = ""
    round_trip_s: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    relayed_sent_bytes: int = 0
    relayed_received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RelayAccess:
    """A relay, `http://ip:port`, and the pass to show there; none is needed where one is a member."""

    url: str
    bearer: str = ""


class Stream(Protocol):
    """A reliable, ordered, bidirectional stream of bytes inside a connection.

    Every method may be cancelled without losing data: a cancelled `read` leaves the bytes for the next one, a
    cancelled `write` still goes out whole. One reader and one writer at a time.
    """

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes, at most `size_bytes_max`; `b""` once the other side has finished. Raises ConnectionLost."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Hands over all of `data`, waiting while the other side does not keep up. Raises ConnectionLost."""
        ...

    async def finish(self) -> None:
        """Half-closes: the other side reads `b""` after the last byte."""
        ...

    def abort(self) -> None:
        """Drops both directions at once, without waiting; the other side sees ConnectionLost. Idempotent.

        A stream that was finished here and read to its end is over: then what was written still arrives.
        """
        ...


class Connection(Protocol):
    """An encrypted connection between two peers, each of which has proved that it holds its key."""

    @property
    def remote(self) -> PeerId: ...

    @property
    def protocol(self) -> bytes:
        """The ALPN both sides agreed on."""
        ...

    @property
    def is_dialler(self) -> bool:
        """Whether this side dialled."""
        ...

    async def open_stream(self) -> Stream:
        """A new stream; the other side sees it once something is written. Raises ConnectionLost."""
        ...

    async def accept_stream(self) -> Stream:
        """The next stream that the other side opened; safe to cancel. Raises ConnectionLost once closed."""
        ...

    def route(self) -> Route: ...

    def close(self, code: int, reason: str) -> None:
        """Closes at once; `reason` (at most 1,000 bytes) reaches the other side. Idempotent.

        What was written and is still on its way is lost, finished or not: let the side that reads last close.
        """
        ...

    async def wait_closed(self) -> str:
        """Returns the reason once the connection is closed, by whichever side or by the network."""
        ...


class Transport(Protocol):
    """Connections by public key: dial and be dialled."""

    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> Sequence[str]:
        """`ip:port` under which this peer may be reached, best first. May change over time."""
        ...

    async def add_address(self, address: str) -> None:
        """Counts `ip:port` among the addresses of this peer: others said that they see it there. Idempotent."""
        ...

    async def remove_address(self, address: str) -> None:
        """Takes back what `add_address` added. Idempotent."""
        ...

    async def use_relays(self, relays: Sequence[RelayAccess]) -> None:
        """Keeps in touch with just these relays, so that others can reach this peer by them; none is no fault."""
        ...

    async def reaches(self, peer: PeerId, address: str, protocol: bytes, timeout_s: float) -> bool:
        """Whether `peer` answers at `address` to somebody it has never sent anything: a fresh port, an unknown key."""
        ...

    def relays(self) -> Sequence[str]:
        """The relay by which others reach this peer now, if any: its URL."""
        ...

    async def dial(
        self,
        peer: PeerId,
        addresses: Sequence[str],
        protocol: bytes,
        timeout_s: float,
        relays: Sequence[RelayAccess] = (),
    ) -> Connection:
        """Connects to `peer` at any of `addresses` or by any of `relays`, on which it waits.

        A connection that begins by a relay becomes direct by itself if both sides can reach each other, and goes on by
        the relay if the direct path dies. Raises Unreachable. Safe to cancel.
        """
        ...

    async def accept(self) -> Connection | None:
        """The next connection that another peer dialled; None once the transport is closed. Safe to cancel."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RelayRates:
    """How fast a relay passes on, in bytes per second on the wire; None: as fast as it goes."""

    total: float | None = None
    per_client: float | None = None


@dataclass(frozen=True, slots=True)
class RelayUsage:
    """What a relay has passed on for one peer: payload bytes from it and to it, and frames that found no room."""

    received_bytes: int = 0
    sent_bytes: int = 0
    dropped_frames: int = 0


class RunningRelay(Protocol):
    """A relay on this machine. Who is not admitted cannot use it; it admits nobody at first."""

    @property
    def port(self) -> int: ...

    @property
    def connected(self) -> int:
        """How many peers are connected."""
        ...

    def admit(self, peers: Collection[PeerId]) -> None:
        """From now on just these may use it; others are cut."""
        ...

    def usage(self) -> Mapping[PeerId, RelayUsage]:
        """What was passed on since it started, per peer; a few tenths of a second old."""
        ...

    async def ended(self) -> str:
        """Returns why it ended, once it has."""
        ...

    async def stop(self) -> None:
        """Ends it. Idempotent."""
        ...


class RelayHost(Protocol):
    """Runs relays on this machine, and asks relays anywhere whether they are there."""

    async def start(self, own: PeerId, port: int, rates: RelayRates) -> RunningRelay:
        """A relay of the device `own`; port 0 lets the system choose. Raises Failed."""
        ...

    async def ask(self, url: str, timeout_s: float) -> float:
        """The round trip to a relay in seconds. Raises Unreachable if it does not answer in time."""
        ...


class Discovery(Protocol):
    """Says things to everybody on this LAN, and hears what they say. Proves nothing.

    Two things are said: that an invitation with a spoken code is open, in clear; and beacons, of which only members
    understand anything.
    """

    async def publish(self, nameplate: int, peer: PeerId, addresses: Sequence[str]) -> None:
        """Announces an invitation's number until it is withdrawn. Raises Failed if this network cannot carry it."""
        ...

    async def withdraw(self, nameplate: int) -> None:
        """Announces it no more."""
        ...

    async def find(self, nameplate: int, timeout_s: float) -> Sequence[tuple[PeerId, Sequence[str]]]:
        """Who announces that number: peers and their addresses, a bounded number of them; empty if nobody does."""
        ...

    async def announce(self, beacons: Sequence[tuple[str, bytes]]) -> None:
        """Shows these beacons, each a name and some bytes, in the place of those shown before. Raises Failed."""
        ...

    async def hear(self, is_wanted: Callable[[str], bool]) -> tuple[str, bytes]:
        """The next beacon whose name is wanted, own ones too; others cost nothing but the question. Raises Failed."""
        ...

    async def close(self) -> None:
        """Withdraws everything."""
        ...


# --- this machine's own services -----------------------------------------------------------------------------------


class Datagrams(Protocol):
    """A UDP socket on the loopback interface. Both methods bear with a peer that is not there: UDP promises nothing.

    Empty datagrams may be left out.
    """

    @property
    def port(self) -> int: ...

    async def receive(self) -> tuple[bytes, int]:
        """The next datagram, and the local port it came from; those that come too fast are dropped. Safe to cancel."""
        ...

    def send(self, datagram: bytes, port: int) -> None:
        """Sends to a local port."""
        ...

    def close(self) -> None:
        """Frees the port. Idempotent."""
        ...


class Listener(Protocol):
    """A TCP port on the loopback interface."""

    @property
    def port(self) -> int: ...

    async def accept(self) -> Stream:
        """The next connection; safe to cancel."""
        ...

    def close(self) -> None:
        """Frees the port; what was accepted lives on. Idempotent."""
        ...


class LocalServices(Protocol):
    """The loopback interface of this machine, and nothing else: no method takes a host.

    Its streams differ from those of a connection in one thing: after a cancelled `write`, only `abort` is left.
    """

    async def connect(self, port: int) -> Stream:
        """A TCP connection to a service of this machine. Raises Unreachable if none listens there."""
        ...

    async def listen(self, port: int) -> Listener:
        """Listens for TCP; 0 picks a free port. Raises Failed if it is taken."""
        ...

    async def datagrams(self, port: int = 0) -> Datagrams:
        """A UDP socket; 0 picks a free port. Raises Failed if it is taken."""
        ...


# --- the owner's own programs ----------------------------------------------------------------------------------------


class Program(Protocol):
    """A program of the owner's that runs on this machine, and the socket between it and this peer."""

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes that it wrote; `b""` once it has ended or hung up. Raises ConnectionLost."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Hands over all of `data`. Raises ConnectionLost."""
        ...

    async def ended(self) -> str:
        """Waits for its end; how it ended, in words, with the last lines that it said."""
        ...

    def kill(self) -> None:
        """Ends it, and what it started, at once. Idempotent."""
        ...


class OwnersPrograms(Protocol):
    """Runs programs with the owner's rights: only what the owner named himself."""

    async def start(self, arguments: Sequence[str], folder: str) -> Program:
        """Starts a program in `folder`; the number of its socket is its last argument. Raises Failed."""
        ...


# --- time and chance -------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Wall time. Durations and timers use the running loop's clock instead."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...


class Entropy(Protocol):
    """Secrets and chance; seeded in simulation."""

    def token(self, size_bytes: int) -> bytes:
        """Unpredictable bytes, fit for keys and secrets."""
        ...

    def random(self) -> Random:
        """A generator for choices that are not secrets."""
        ...


# --- the machine -----------------------------------------------------------------------------------------------------


class Database(Protocol):
    """The peer's state. One writer; every call is one transaction, durable once it returns."""

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in one transaction: committed if it returns, rolled back if it raises."""
        ...

    async def close(self) -> None: ...


CHUNK_BYTES_MAX = 8 << 20
"""The largest chunk that a store takes."""
CHUNK_KEY_BYTES = 32
OWN_VALUES = bytes(CHUNK_KEY_BYTES)
"""An owner that no twin can be: what is kept under it is this peer's own, and under no lease."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that are kept for an owner under a key of the owner's choice; the store does not look into them."""

    owner: bytes
    key: bytes
    data: bytes | memoryview


class ChunkStore(Protocol):
    """Chunks on this machine's disk, apart for each owner. What a call has returned from survives a power cut.

    Owners and keys are 32 bytes long. Every call raises Failed if the disk is full, cannot be written or is damaged.
    """

    async def put(self, chunks: Sequence[Chunk]) -> None:
        """Keeps all of these; calls at the same time share one sync of the disk.

        One that is held already is left as it is, unless a read has found it damaged. A failed or cancelled call may
        have kept some.
        """
        ...

    async def read(self, owner: bytes, key: bytes, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Part of one chunk, as far as it goes. Only a read of the whole is checked against what was put.

        Raises:
            NotFound: it is not held.
            Failed: it is damaged.
        """
        ...

    async def sizes(self, owner: bytes, keys: Sequence[bytes]) -> list[int | None]:
        """How long each of these is, in bytes; None for what is not held, or known to be damaged."""
        ...

    async def keys(self, owner: bytes, after: bytes = b"", count_max: int = 1000) -> list[tuple[bytes, int]]:
        """What is held, by key in ascending order, from the first one after `after`, and how long each is."""
        ...

    async def owners(self) -> list[bytes]:
        """For whom anything is held."""
        ...

    async def delete(self, owner: bytes, keys: Sequence[bytes]) -> int:
        """Gives their room back to the disk; returns how many bytes. What is not held is passed over."""
        ...

    async def held_bytes(self, owner: bytes | None = None) -> int:
        """What one owner's chunks take on the disk, or all of them."""
        ...

    async def close(self) -> None:
        """Waits for what is under way. Idempotent."""
        ...


class Offload(Protocol):
    """CPU work off the event loop."""

    async def run(self, work: Callable[..., T], *args: object) -> T: ...


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """What a box is given. Everything that is not listed is out of reach for the code inside.

    Attributes:
        name: unique among the peer's live boxes; letters, digits and dashes.
        argv: the program; an argument equal to `{fd}` becomes the number of the inherited socket.
        read_only: paths of the host seen inside at the same place, besides the system's `/usr`.
        work_dir: a folder of the host that is writable inside as `/job`; None for none.
        environment: the program's whole environment, besides PATH, HOME, TMPDIR and LANG.
        cpus: processor share; memory_bytes: resident, page cache and tmpfs together; processes_max: tasks alive;
        host_name: what the box calls itself, where it can have a name of its own.
        devices: files and device nodes of the host by name, readable inside where `CROFT_DEVICE_NAME` says.
        is_wasm: its program runs WebAssembly alone, which holds foreign code where nothing else does.
        scratch_bytes: size of `/tmp`; work_bytes and work_files_max: what `/job` may grow to.
        has_doorway: whether there is a second socket, by which streams come in; `{doorway}` in `argv` is its number.
    """

    name: str
    argv: tuple[str, ...]
    read_only: tuple[str, ...] = ()
    work_dir: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1.0
    memory_bytes: int = 512 << 20
    processes_max: int = 64
    scratch_bytes: int = 64 << 20
    work_bytes: int = 1 << 30
    host_name: str = "box"
    work_files_max: int = 20_000
    devices: Mapping[str, str] = field(default_factory=dict)
    is_wasm: bool = False
    has_doorway: bool = False


@dataclass(frozen=True, slots=True)
class BoxUsage:
    """What a box used, as read from outside it. `death` names why it ended if a limit or a fault ended it.

    `limits` names the limits that killed or refused something inside, though the box lived on.
    """

    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    death: str = ""
    limits: str = ""


PACKET_BYTES_MAX = 4 << 10
"""What is said by a doorway at once."""


class Doorway(Protocol):
    """By which a box gets streams: packets both ways, and with some of those to the program one end of a stream."""

    async def receive(self) -> bytes:
        """The next packet from the program; `b""` once it has ended. Safe to cancel."""
        ...

    async def send(self, packet: bytes) -> None:
        """Says a packet to the program, waiting while it takes none. Raises ConnectionLost."""
        ...

    async def hand_over(self, packet: bytes) -> Stream:
        """The same, and gives the program one end of a new stream along with it; returns the other end.

        It differs from a stream of a connection in one thing: after a cancelled `write`, only `abort` is left.
        """
        ...


class Box(Protocol):
    """A running program in isolation, with one socket to it."""

    @property
    def doorway(self) -> Doorway | None:
        """Its doorway, if it was made with one."""
        ...

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes from the program; `b""` once it has ended. Safe to cancel."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Hands over all of `data`, waiting while the program does not keep up. Raises ConnectionLost."""
        ...

    def usage(self) -> BoxUsage:
        """What it has used so far."""
        ...

    async def hold(self, is_held: bool) -> None:
        """Stops everything inside where it is, or lets it go on. Idempotent."""
        ...

    async def limit(self, cpus: float) -> None:
        """Gives the box so many processors from now on, where the machine can hold it to that."""
        ...

    async def close(self) -> BoxUsage:
        """Kills everything inside, frees what it held and returns the final usage. Idempotent."""
        ...


class OwnersMachine(Protocol):
    """What the owner does with this machine while it lends."""

    def busy(self, lent_cpu_s: float) -> float:
        """The share, from 0 to 1, of all processors that the owner's programs used since the last call.

        `lent_cpu_s` is what boxes have used in all so far: it does not count, and neither does this peer itself.
        """
        ...

    def is_on_battery(self) -> bool:
        """Whether it runs on battery now."""
        ...


class Sandbox(Protocol):
    """Holds foreign code."""

    def isolation(self) -> Isolation:
        """What this machine can hold, found by trying."""
        ...

    async def open(self, spec: BoxSpec) -> Box:
        """Starts a box. Raises Failed with the reason if it cannot be started."""
        ...
