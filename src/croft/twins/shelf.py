"""Decides which letters are wanted and kept here, within bounds per author and for whom. Sans-IO.

It knows the numbers of all that is kept, not the letters themselves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

from croft.errors import Busy
from croft.twins.letters import Box, Feed

READ_HERE_BYTES_MAX: Final = 16 << 20
"""Of one author in one box that is read here."""
KEPT_BYTES_MAX: Final = 1 << 20
"""Of one author in one box that is kept for others."""
KEPT_OF_ONE_BYTES_MAX: Final = 4 << 20
"""Of one author in all boxes that are kept for others: nobody fills the room that all have."""
KEPT_FOR_OTHERS_BYTES_MAX: Final = 64 << 20
READ_BYTES_MAX: Final = 512 << 20
ROOMS_MAX: Final = 64
"""Rooms of one community."""
FEEDS_PER_BOX_MAX: Final = 1_024
PARTS_PER_FEED_MAX: Final = 16

Part = tuple[int, int]
"""First and last number of an unbroken part of a feed."""


class Shelf:
    """The numbers of all letters that are kept here."""

    def __init__(self) -> None:
        self._numbers: dict[Feed, list[int]] = {}
        self._feeds: dict[Box, dict[Feed, None]] = {}
        self._bytes: dict[tuple[Box, str], int] = {}
        self._kept_of: dict[str, int] = {}
        self._for_others = 0
        self._for_owner = 0
        self.kept_for_others = 0
        """Letters that are not read here."""

    def boxes(self) -> list[Box]:
        """Those with letters."""
        return list(self._feeds)

    def feeds(self, box: Box) -> list[Feed]:
        """Those of a box."""
        return list(self._feeds.get(box, ()))

    def rooms(self, community: str) -> list[str]:
        """The rooms of a community in which there are letters."""
        return sorted(box.room for box in self._feeds if box.community == community and box.room)

    def has(self, feed: Feed, sequence: int) -> bool:
        """Whether that letter is kept."""
        numbers = self._numbers.get(feed, [])
        at = bisect_left(numbers, sequence)
        return at < len(numbers) and numbers[at] == sequence

    def check_room(self, feed: Feed, author: str, size: int, *, is_read_here: bool) -> None:
        """Raises Busy if one letter more would be too many."""
        box = feed.box
        limit = READ_HERE_BYTES_MAX if is_read_here else KEPT_BYTES_MAX
        total, most = (
            (self._for_owner, READ_BYTES_MAX) if is_read_here else (self._for_others, KEPT_FOR_OTHERS_BYTES_MAX)
        )
        is_new_feed = feed not in self._numbers
        is_crowded = is_new_feed and len(self._feeds.get(box, ())) >= FEEDS_PER_BOX_MAX
        is_room_too_many = box not in self._feeds and bool(box.room) and len(self.rooms(box.community)) >= ROOMS_MAX
        is_greedy = not is_read_here and self._kept_of.get(author, 0) + size > KEPT_OF_ONE_BYTES_MAX
        is_full = self._bytes.get((box, author), 0) + size > limit or total + size > most
        if is_full or is_greedy or is_crowded or is_room_too_many:
            raise Busy("there is no room for more letters of this author", remedy="Old ones go after thirty days.")

    def put(self, feed: Feed, author: str, sequence: int, size: int, *, is_read_here: bool) -> None:
        """A letter is kept from now on."""
        if self.has(feed, sequence):
            return
        insort(self._numbers.setdefault(feed, []), sequence)
        self._feeds.setdefault(feed.box, {})[feed] = None
        self._bytes[feed.box, author] = self._bytes.get((feed.box, author), 0) + size
        if is_read_here:
            self._for_owner += size
        else:
            self._for_others += size
            self._kept_of[author] = self._kept_of.get(author, 0) + size
            self.kept_for_others += 1

    def parts(self, feed: Feed) -> list[Part]:
        """What is kept of a feed, the newest parts if there are many."""
        parts: list[Part] = []
        for number in self._numbers.get(feed, []):
            if parts and parts[-1][1] == number - 1:
                parts[-1] = parts[-1][0], number
            else:
                parts.append((number, number))
        return parts[-PARTS_PER_FEED_MAX:]

    def last(self, feed: Feed) -> int:
        """The highest number of a feed; 0 for none."""
        numbers = self._numbers.get(feed)
        return numbers[-1] if numbers else 0

    def lacks(self, feed: Feed, offered: Part, begin: int) -> list[Part]:
        """What of an offered part is not kept, from number `begin` on."""
        lacking: list[Part] = []
        at = max(offered[0], begin)
        for first, last in self.parts(feed):
            if last < at:
                continue
            if first > offered[1]:
                break
            if first > at:
                lacking.append((at, first - 1))
            at = last + 1
        if at <= offered[1]:
            lacking.append((at, offered[1]))
        return lacking


def within(wanted: Part, offered: Sequence[Part]) -> bool:
    """Whether a wanted part was offered."""
    return any(first <= wanted[0] <= wanted[1] <= last for first, last in offered)
