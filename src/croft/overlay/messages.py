"""Wire messages of `croft/1`, the protocol between members. Only add: new fields need a default, tags are for ever."""

from __future__ import annotations

from collections.abc import Sequence

from croft.wire.codec import Message

PROTOCOL = b"croft/1"
VERSION = 1

HELLO_BYTES_MAX = 64 << 10
CONTROL_FRAME_BYTES_MAX = 1 << 20


# --- the greeting: first frame of the control stream, each way -------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """Who speaks: the device's certificate, and for each community that both may share, the grant chain.

    `instance` is drawn anew at each start, so that a restart is told from a second dial. `clock` is the sender's wall
    time in Unix seconds, so that a clock that is wrong shows; 0 from versions that do not say it. `lost` counts the
    links to the receiver that the sender has lost since it started: a dial in place of one that the receiver still
    holds for live is told from two dials at once.
    """

    version: int
    certificate: bytes
    memberships: list[tuple[str, list[bytes]]]
    instance: bytes
    clock: float = 0.0
    lost: int = 0


class Rejected(Message, frozen=True, tag=2):
    """The hello was not good enough; the connection is closed after it."""

    code: str
    message: str
    remedy: str = ""


Greeting = Hello | Rejected


# --- the control stream ----------------------------------------------------------------------------------------------


class Call(Message, frozen=True, tag=10):
    """Asks for an answer within `deadline_s`."""

    call: int
    method: str
    deadline_s: float
    body: bytes


class Answer(Message, frozen=True, tag=11):
    """The answer to a call."""

    call: int
    body: bytes


class Failure(Message, frozen=True, tag=12):
    """A call failed. No traceback travels."""

    call: int
    code: str
    message: str
    remedy: str = ""


class CancelCall(Message, frozen=True, tag=13):
    """The caller no longer waits."""

    call: int


class Notice(Message, frozen=True, tag=14):
    """Something the other side may want to know; no answer."""

    topic: str
    body: bytes


class Heartbeat(Message, frozen=True, tag=15):
    """Shows that the sender's event loop runs; the link's life depends on it."""

    sequence: int


class HeartbeatEcho(Message, frozen=True, tag=16):
    """Answers a heartbeat; the round trip is measured by it."""

    sequence: int


OnControlStream = Call | Answer | Failure | CancelCall | Notice | Heartbeat | HeartbeatEcho


# --- every further stream --------------------------------------------------------------------------------------------


class StreamHeader(Message, frozen=True, tag=20):
    """First frame of a stream: what it is for.

    `lasting` numbers one that outlives its connections, `received` says that it is put under one that did, which has
    received so many bytes here; -1 for a new one.
    """

    purpose: str
    lasting: bytes = b""
    received: int = -1


# --- membership ------------------------------------------------------------------------------------------------------


class Descriptor(Message, frozen=True):
    """What a member says of itself to one community; travels signed by the device's key.

    Attributes:
        community, grant_chain: the membership, checked by whoever receives this.
        certificate: the twin's certificate of the device.
        addresses: `ip:port`, best first. sequence: milliseconds of wall time; the highest wins.
        instance: drawn anew at each start. expires_at: Unix seconds.
        slots, memory_bytes, disk_bytes: what it lends; 0 slots: it does not lend processor time.
        grade: isolation grade. python: major.minor of the interpreter its boxes run. machine: architecture.
        labels: the owner's words for what is special about it. relays: URLs of relays under which it can be reached.
        nat: how its address is translated, as far as it knows; empty if unknown.
    """

    community: str
    grant_chain: list[bytes]
    certificate: bytes
    addresses: list[str]
    sequence: int
    instance: bytes
    expires_at: float
    slots: int
    memory_bytes: int
    disk_bytes: int
    grade: str
    python: str
    machine: str
    version: str
    labels: Sequence[str] = ()
    relays: Sequence[str] = ()
    nat: str = ""


class Load(Message, frozen=True):
    """How busy the sender is: `slots_busy` of its lent slots; `cpu` and `disk` from 0 to 1."""

    slots_busy: int
    cpu: float
    disk: float


class Presence(Message, frozen=True):
    """The sender lives, and is so busy; travels signed by the device's key.

    `community` is the first digits of the community's id; `sequence` as in `Descriptor`, of one count with it.
    """

    community: str
    sequence: int
    slots_busy: int
    cpu: float
    disk: float


# --- who lives, and who keeps links to whom: bodies of notices and calls ---------------------------------------------


class Suspicion(Message, frozen=True):
    """`peer` seems dead to somebody who knows its words up to `sequence`."""

    peer: str
    sequence: int


class ProbeWanted(Message, frozen=True):
    """Asks whether the other side reaches `peer`."""

    peer: str


class ProbeAnswer(Message, frozen=True):
    """Whether it does."""

    is_reached: bool


class NeighbourWord(Message, frozen=True):
    """A word about the link itself, by its number in `overlay.neighbours.Word`."""

    word: int
