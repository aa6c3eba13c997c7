"""What the local API says of twins, of messages between them, and of pipelines through what they can do."""

from __future__ import annotations

import msgspec


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """A person or organisation, as it says itself and as it is known here.

    `delegates`: peers that it named to stand in for it; `devices`: its own, by what they are called here, and `alive`
    those of them that are up. `kept_letters`: of this peer's owner alone, letters of others that are kept here.
    """

    twin: str
    name: str
    is_self: bool
    profile: str = ""
    delegates: list[str] = []
    devices: list[str] = []
    alive: list[str] = []
    communities: list[str] = []
    said_at: float | None = None
    kept_letters: int | None = None


class TwinWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner says of itself from now on; None leaves it as it is. Delegates are named as peers are."""

    profile: str | None = None
    delegates: list[str] | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Something written to a person or into a room.

    Attributes:
        number: in the order in which messages came to this peer. by: who wrote it; device: on which peer.
        to: whose inbox; empty for a room. kind: `text`, or `sealed` where this device was given no key to it.
        answers: the id of the message that it answers. missing: how many before it from there never came.
        state: of own ones: `delivered`, `kept` by others meanwhile, or `here` alone; of others: `new` or `read`.
        kept_by: peers known to hold it.
    """

    message: str
    number: int
    by: str
    twin: str
    device: str
    community: str
    to: str
    room: str
    written_at: float
    arrived_at: float
    kind: str
    text: str
    state: str
    answers: str = ""
    missing: int = 0
    is_own: bool = False
    delivered_at: float | None = None
    kept_by: list[str] = []


class MessageWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to write to whom: people by any of their names, or a room of a community. `answers`: a message's id."""

    text: str
    to: list[str] = []
    room: str = ""
    community: str = ""
    answers: str = ""


class MessagesWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages to show: with a person, of a room, after a number, only new ones; the newest `count` of them.

    `wait_s`: how long to wait for one if there is none. `marks`: whether the owner has seen them now.
    """

    who: str = ""
    room: str = ""
    community: str = ""
    after: int = 0
    only_new: bool = False
    count: int = 100
    wait_s: float = 0.0
    marks: bool = False


class PipelinePeer(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer does for a stage: items that it runs now, and that it has done since this peer's last start."""

    name: str
    running: int
    done: int


class PipelineStage(msgspec.Struct, frozen=True, kw_only=True):
    """How a stage stands, in items. `is_missing`: nobody who is up offers it."""

    name: str
    waiting: int
    running: int
    done: int
    failed: int
    peers: list[PipelinePeer] = []
    is_missing: bool = False


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline of this peer's owner.

    Attributes:
        state: `open` while items are added, then `running`, `done` or `cancelled`.
        items, done, failed: how many there are, are through, and were given up. errors: why, of a few.
        kept_bytes: what peers keep for it, by name.
    """

    pipeline: str
    name: str
    state: str
    created_at: float
    ended_at: float | None
    items: int
    done: int
    failed: int
    waiting_for_consent: int
    stages: list[PipelineStage]
    kept_bytes: dict[str, int] = {}
    errors: list[str] = []


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A room in which something was written. `new`: messages that the owner has not seen."""

    room: str
    community: str
    community_name: str
    new: int


class LeftCallWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A call to be left for the peer that offers it. `arguments`: in the safe codec; `digest`: of its signature."""

    name: str
    peer: str
    arguments: bytes
    digest: str
    is_idempotent: bool


class LeftCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was left for somebody.

    `state`: `waiting`, `done` or `failed`, with the `code` and `message` of why. `size`: of the result, in bytes.
    """

    call: str
    name: str
    by: str
    left_at: float
    state: str
    size: int = 0
    code: str = ""
    message: str = ""
    remedy: str = ""
    traceback: str = ""


class LeftValue(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a call that was left, in the safe codec."""

    value: bytes
