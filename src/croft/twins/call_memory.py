"""Bounds what callers have lying at a provider, and remembers answers to calls that are made again. Sans-IO."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from croft.model.ids import TwinId
from croft.twins.call_messages import ARGUMENT_BYTES_MAX, ArgumentPart, InputItem

MESSAGE_BYTES: Final = 64
"""What a message takes at least: also empty ones may come in floods."""
ANSWERS_MAX: Final = 4_096
ANSWERS_BYTES_MAX: Final = 64 << 20
ANSWER_BYTES_MAX: Final = 4 << 20
ANSWER_KEPT_S: Final = 600.0

Key = tuple[TwinId, str, bytes]
"""Who calls what, under which key of idempotence."""


class Intake:
    """What one call was sent and its function has not taken yet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._items: deque[int] = deque()

    @property
    def is_too_much(self) -> bool:
        """Whether no call may have so much lying."""
        return self.size > ARGUMENT_BYTES_MAX

    def add(self, part: ArgumentPart | InputItem) -> None:
        """More has come."""
        size = len(part.data) + MESSAGE_BYTES
        self.size += size
        if isinstance(part, InputItem):
            self._items.append(size)
        elif self._items:
            self._items[-1] += size

    def taken(self, items: int) -> None:
        """The function took so many items of the stream into it."""
        for _ in range(min(items, len(self._items))):
            self.size -= self._items.popleft()


class RecentAnswers:
    """Results of calls by their keys: whoever asks again, because the answer was lost, is not served twice."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Key, tuple[Sequence[bytes], float]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key, now: float) -> Sequence[bytes] | None:
        """The parts of what was answered, if it is remembered."""
        known = self._answers.get(key)
        return known[0] if known is not None and now < known[1] else None

    def put(self, key: Key, parts: Sequence[bytes], now: float) -> None:
        """Remembers an answer; the oldest ones, and those that are old, are forgotten."""
        size = sum(map(len, parts))
        if size > ANSWER_BYTES_MAX or key in self._answers:
            return
        self._answers[key] = parts, now + ANSWER_KEPT_S
        self._bytes += size
        while self._answers and (
            len(self._answers) > ANSWERS_MAX
            or self._bytes > ANSWERS_BYTES_MAX
            or next(iter(self._answers.values()))[1] <= now
        ):
            _, (old, _) = self._answers.popitem(last=False)
            self._bytes -= sum(map(len, old))
