"""What tasks print, brought home with their values, where `logs=True` asks for it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

PRINTED_BYTES_MAX: Final = 64 << 10
"""Of one task; of more, the end is kept."""


@dataclass(frozen=True)
class WithLog:
    """A value, and what was printed while it was made."""

    value: Any
    log: str


class Logged:
    """A function whose calls give their values with what they, and whatever they started, printed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> WithLog:
        """Runs it; what it printed before it raised goes where it would have gone."""
        with tempfile.TemporaryFile() as file:
            kept = _point_to(file.fileno())
            try:
                value = self.function(*args, **kwargs)
            except BaseException:
                _point_back(kept)
                os.write(2, _end_of(file.fileno()).encode())
                raise
            _point_back(kept)
            return WithLog(value, _end_of(file.fileno()))


def _point_to(descriptor: int) -> tuple[int, int]:
    _flush()
    kept = os.dup(1), os.dup(2)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    return kept


def _point_back(kept: tuple[int, int]) -> None:
    _flush()
    for number, descriptor in enumerate(kept, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _end_of(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    start = max(0, size - PRINTED_BYTES_MAX)
    text = os.pread(descriptor, PRINTED_BYTES_MAX, start).decode(errors="replace")
    return f"… {start:,} bytes before\n{text}" if start else text


def show(log: str, peer: str, task: int) -> None:
    """Prints what a task printed, each line with where that was."""
    for line in log.splitlines():
        print(f"[{peer} #{task}] {line}", file=sys.stderr)  # noqa: T201 - this is what the caller asked for
