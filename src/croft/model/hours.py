"""A part of every day, as people write it: `08-18`, `22:30-06:00`."""

from __future__ import annotations

from dataclasses import dataclass

MINUTES_PER_DAY = 1_440


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of every day, in minutes after local midnight; it may go over midnight."""

    start: int
    end: int

    def __contains__(self, minute: int) -> bool:
        if self.start <= self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def parse_hours(text: str) -> Hours:
    """The hours of "08-18" or "22:30-06:00". Raises ValueError."""
    start, dash, end = text.partition("-")
    minutes = [_minute(start), _minute(end)]
    if not dash or minutes[0] is None or minutes[1] is None or minutes[0] == minutes[1]:
        raise ValueError(f"{text!r} are no hours of the day")
    return Hours(minutes[0], minutes[1])


def show_hours(hours: Hours) -> str:
    """ "08:00-18:00": for people, and for the disk."""
    return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (hours.start, hours.end))


def _minute(text: str) -> int | None:
    hour, _, minute = text.strip().partition(":")
    if not (hour.isascii() and hour.isdigit() and (minute or "0").isascii() and (minute or "0").isdigit()):
        return None
    value = int(hour) * 60 + int(minute or 0)
    return value % MINUTES_PER_DAY if int(minute or 0) < 60 and value <= MINUTES_PER_DAY else None
