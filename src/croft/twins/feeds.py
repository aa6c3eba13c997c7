"""Decides which letters of a feed are read now: each once, in the order in which they were written. Sans-IO.

Letters come by many ways, twice, and out of order. What comes early waits for what is before it; what does not come
within GAP_S_MAX is given up, and the reader is told how many letters are missing. Two different letters of one number
are a fork: the first that came counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from croft.twins.letters import Feed

WAITING_MAX: Final = 256
"""Letters of one feed that may wait for one before them."""
GAP_S_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """A verified letter came. `digest`: its own; `previous`: of the one before it, as it says itself."""

    feed: Feed
    sequence: int
    digest: bytes
    previous: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Looked:
    """Some time passed."""

    now: float


Event = Arrived | Looked


@dataclass(frozen=True, slots=True)
class Read:
    """It is this letter's turn. `missing`: how many before it never came."""

    feed: Feed
    sequence: int
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Forked:
    """Its author wrote another letter of this number, or before it: this one does not count."""

    feed: Feed
    sequence: int


Effect = Read | Forked


@dataclass(slots=True)
class _Progress:
    next: int = 1
    last: bytes = b""
    waiting: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    gap_since: float = 0.0


class Feeds:
    """What was read of every feed of the boxes that are read here."""

    def __init__(self) -> None:
        self._feeds: dict[Feed, _Progress] = {}

    def resume(self, feed: Feed, next_sequence: int, last: bytes) -> None:
        """How far a feed was read in an earlier run."""
        self._feeds[feed] = _Progress(next_sequence, last)

    def next_of(self, feed: Feed) -> int:
        """The number of the next letter to be read."""
        return self._feeds[feed].next if feed in self._feeds else 1

    def last_of(self, feed: Feed) -> bytes:
        """The digest of the letter that was read last."""
        return self._feeds[feed].last if feed in self._feeds else b""

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Arrived():
                return self._arrived(event)
            case Looked(now):
                return [effect for feed in list(self._feeds) for effect in self._look(feed, now)]
            case _:
                assert_never(event)

    def _arrived(self, event: Arrived) -> Sequence[Effect]:
        progress = self._feeds.setdefault(event.feed, _Progress())
        if event.sequence < progress.next:
            return []
        if event.sequence in progress.waiting:
            known, _ = progress.waiting[event.sequence]
            return [] if known == event.digest else [Forked(event.feed, event.sequence)]
        if event.sequence == progress.next and not self._follows(progress, event.previous):
            return [Forked(event.feed, event.sequence)]
        if len(progress.waiting) >= WAITING_MAX and event.sequence != progress.next:
            return []  # whoever has it offers it again
        if not progress.waiting:
            progress.gap_since = event.now
        progress.waiting[event.sequence] = event.digest, event.previous
        return self._read(event.feed, progress, event.now, 0)

    def _look(self, feed: Feed, now: float) -> Sequence[Effect]:
        progress = self._feeds[feed]
        if not progress.waiting or now - progress.gap_since < GAP_S_MAX:
            return []
        first = min(progress.waiting)
        missing = first - progress.next
        progress.next, progress.last = first, b""
        return self._read(feed, progress, now, missing)

    def _read(self, feed: Feed, progress: _Progress, now: float, missing: int) -> Sequence[Effect]:
        effects: list[Effect] = []
        while progress.next in progress.waiting:
            sequence = progress.next
            digest, previous = progress.waiting.pop(sequence)
            if not self._follows(progress, previous):
                effects.append(Forked(feed, sequence))
                break
            effects.append(Read(feed, sequence, missing))
            progress.next, progress.last, missing = sequence + 1, digest, 0
            progress.gap_since = now
        return effects

    @staticmethod
    def _follows(progress: _Progress, previous: bytes) -> bool:
        """After a gap, what was before is not known and cannot be compared."""
        return progress.next == 1 or not progress.last or previous == progress.last
