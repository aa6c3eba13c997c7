"""What peers tell each other of a community's operations, over their links. Only add fields, with defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from croft.wire.codec import Message

NOTICE_HEADS: Final = "community.heads"
CALL_OPERATIONS: Final = "community.operations"
STEP: Final = "community operations"
HEADS_MAX: Final = 64
KNOWN_MAX: Final = 64
FRESH_MAX: Final = 8
FRESH_BYTES_MAX: Final = 32 << 10
PAGE_OPERATIONS_MAX: Final = 256
PAGE_BYTES_MAX: Final = 128 << 10


class Heads(Message, frozen=True):
    """The newest operations that the sender knows, and some that it has just signed."""

    community: str
    heads: list[bytes]
    fresh: Sequence[bytes] = ()


class OperationsWanted(Message, frozen=True):
    """Asks for what leads to `wanted` and is not in the past of `known`; `start` is what the last page said."""

    community: str
    wanted: list[bytes]
    known: list[bytes]
    start: int = 0


class OperationsPage(Message, frozen=True):
    """Some of what was asked for, parents before children. `next`: where the next page starts; 0: this is the last."""

    records: list[bytes]
    next: int = 0
