"""Wire messages by which records spread: bodies of the notice `records`. Only add: new fields need a default."""

from __future__ import annotations

from croft.wire.codec import Message

NOTICE_RECORDS = "records"

HAVE_ENTRIES_MAX = 512
WANTED_MAX = 512
RECORDS_PER_PUSH_MAX = 64
RECORD_BYTES_PER_PUSH_MAX = 512 << 10


class Roots(Message, frozen=True, tag=1):
    """For each kind, a digest over all records that the sender holds in the community, and how many they are.

    A count of -1 says that the sender holds only some of that kind, so that there is nothing to compare.
    """

    community: str
    roots: list[tuple[str, int, int]]


class Branches(Message, frozen=True, tag=2):
    """One digest for each of so many equal ranges of slots; the roots differed."""

    community: str
    kind: str
    digests: list[int]


class Have(Message, frozen=True, tag=3):
    """Slots and versions that the sender holds: all of range `at` of `ranges`, or just these if `ranges` is 0."""

    community: str
    kind: str
    ranges: int
    at: int
    entries: list[tuple[int, int]]


class Wanted(Message, frozen=True, tag=4):
    """Slots of which the sender wants the records."""

    community: str
    kind: str
    slots: list[int]


class Push(Message, frozen=True, tag=5):
    """Signed records, each with its kind."""

    community: str
    records: list[tuple[str, bytes]]


RecordMessage = Roots | Branches | Have | Wanted | Push
