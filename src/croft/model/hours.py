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


# --- parts of a week -------------------------------------------------------------------------------------------------

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_WEEK = len(DAYS) * MINUTES_PER_DAY


@dataclass(frozen=True, slots=True)
class When:
    """A part of every week: hours of some days, in minutes after midnight of Monday. `hours` None: the whole day.

    Hours that go over midnight belong to the day on which they begin.
    """

    days: tuple[int, ...]
    hours: Hours | None = None

    def __contains__(self, minute: int) -> bool:
        day, time = divmod(minute % MINUTES_PER_WEEK, MINUTES_PER_DAY)
        if self.hours is None:
            return day in self.days
        if time not in self.hours:
            return False
        is_of_the_night_before = self.hours.start > self.hours.end and time < self.hours.end
        return (day - is_of_the_night_before) % len(DAYS) in self.days


def parse_when(text: str) -> When:
    """The part of a week of "20-08", "sat,sun" or "mon-fri 22:30-06:00". Raises ValueError."""
    words = text.lower().split()
    days = tuple(range(len(DAYS)))
    if words and words[0][:1].isalpha():
        days = _days(words.pop(0))
    if len(words) > 1 or not text.split():
        raise ValueError(f"{text!r} is no part of a week")
    return When(days, parse_hours(words[0]) if words else None)


def show_when(when: When) -> str:
    """ "mon-fri 20:00-08:00": for people, and for the disk."""
    words = []
    if len(when.days) < len(DAYS):
        first, last = when.days[0], when.days[-1]
        is_row = len(when.days) > 2 and when.days == tuple(range(first, last + 1))
        words.append(f"{DAYS[first]}-{DAYS[last]}" if is_row else ",".join(DAYS[day] for day in when.days))
    if when.hours is not None:
        words.append(show_hours(when.hours))
    return " ".join(words) or f"{DAYS[0]}-{DAYS[-1]}"


def show_minute(minute: int) -> str:
    """ "tue 14:05": a minute of the week."""
    day, time = divmod(minute % MINUTES_PER_WEEK, MINUTES_PER_DAY)
    return f"{DAYS[day]} {time // 60:02}:{time % 60:02}"


def _days(text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!r} are no days of the week")
        start, end = DAYS.index(first), DAYS.index(last or first)
        days |= {day % len(DAYS) for day in range(start, end + 1 if end >= start else end + len(DAYS) + 1)}
    return tuple(sorted(days))
