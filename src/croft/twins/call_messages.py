"""Wire messages of calls. Only add: new fields need a default, tags are for ever.

The same messages travel between two peers (a stream of purpose `calls`), between a program and its daemon, and between
a daemon and the process that runs a capability. Calls are numbered by whoever makes them, and share a stream. Values
are in the safe codec, in parts of VALUE_PART_BYTES_MAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from croft.wire.codec import Message

CALLS_PURPOSE: Final = "calls"
VALUE_PART_BYTES_MAX: Final = 256 << 10
FRAME_BYTES_MAX: Final = 1 << 20
CALLS_OPEN_MAX: Final = 1_024
"""Calls that one side may have open on one stream."""
ARGUMENT_BYTES_MAX: Final = 256 << 20
RESULT_BYTES_MAX: Final = 256 << 20
REFS_MAX: Final = 16
"""Arguments of one call that are kept elsewhere."""
ITEMS_AHEAD: Final = 16
"""Items of a stream that may be under way before its reader has taken them."""


# --- towards whoever runs it -----------------------------------------------------------------------------------------


class ValueRef(Message, frozen=True):
    """An argument that a peer keeps, under a token; see `croft.twins.kept_values`."""

    parameter: str
    peer: str
    token: bytes
    size: int


class AskCall(Message, frozen=True, tag=1):
    """Asks for a call of `name`. Its arguments begin with `arguments`, and go on in parts unless that `is_whole`.

    `signature`: digest of the signature that the caller knows; empty: whatever it is. `key`: the same for a call that
    is made again. `wait_s`: how long the caller waits for the owner's consent. `of`: from a program, the twin or peer
    that is to run it; empty: any. `refs`: arguments that the provider fetches from whoever keeps them. `is_kept`: the
    provider is to keep the result, and say where.
    """

    call: int
    name: str
    arguments: bytes
    is_whole: bool = True
    signature: bytes = b""
    key: bytes = b""
    wait_s: float = 0.0
    time_s_max: float = 0.0
    of: str = ""
    refs: Sequence[ValueRef] = ()
    is_kept: bool = False


class ArgumentPart(Message, frozen=True, tag=2):
    """More of the arguments, or of an item of the stream into the call."""

    call: int
    data: bytes
    is_last: bool


class InputItem(Message, frozen=True, tag=3):
    """The next item of the stream into the call."""

    call: int
    data: bytes
    is_whole: bool = True


class InputEnd(Message, frozen=True, tag=4):
    """There are no more items."""

    call: int


class MoreWanted(Message, frozen=True, tag=5):
    """The reader of a stream has taken so many items."""

    call: int
    items: int


class StopCall(Message, frozen=True, tag=6):
    """Nobody waits for it any more."""

    call: int


class NamedArgument(Message, frozen=True, tag=7):
    """To the process: more of an argument that was fetched for it."""

    call: int
    parameter: str
    data: bytes
    is_last: bool


ToProvider = AskCall | ArgumentPart | InputItem | InputEnd | MoreWanted | StopCall | NamedArgument


# --- towards whoever called ------------------------------------------------------------------------------------------


class ValuePart(Message, frozen=True, tag=20):
    """A part of the result, or of an item where results stream."""

    call: int
    data: bytes
    is_last: bool = True
    is_item: bool = False


class CallEnded(Message, frozen=True, tag=21):
    """No more items come."""

    call: int


class CallRaised(Message, frozen=True, tag=22):
    """The function raised: the class of its exception, what that says, and the traceback as text."""

    call: int
    name: str
    message: str
    traceback: str


class CallFailed(Message, frozen=True, tag=23):
    """The call came to nothing. `has_begun`: whether it may have run. `field`: the argument that does not fit."""

    call: int
    code: str
    message: str
    remedy: str = ""
    has_begun: bool = False
    field: str = ""


class CallWaits(Message, frozen=True, tag=24):
    """The owner is asked for consent."""

    call: int


class CallAt(Message, frozen=True, tag=25):
    """To a program: who runs the call, by id and by name."""

    call: int
    peer: str
    name: str


class InputWanted(Message, frozen=True, tag=26):
    """The reader of the stream into the call has taken so many items."""

    call: int
    items: int


class WorkerReady(Message, frozen=True, tag=27):
    """From the process: the function is loaded. Of no call, so 0."""

    call: int = 0
    python: str = ""


class ValueKept(Message, frozen=True, tag=28):
    """The provider keeps the result: so many bytes in the safe codec."""

    call: int
    token: bytes
    size: int


ToCaller = ValuePart | CallEnded | CallRaised | CallFailed | CallWaits | CallAt | InputWanted | WorkerReady | ValueKept


def is_last(message: ToCaller) -> bool:
    """Whether nothing more comes of the call."""
    match message:
        case ValuePart(_, _, is_last, is_item):
            return is_last and not is_item
        case CallEnded() | CallRaised() | CallFailed() | ValueKept():
            return True
    return False
