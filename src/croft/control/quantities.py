"""Sizes, durations and rates, as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from croft.errors import Usage
from croft.model.amounts import BOX
from croft.model.hours import Hours, When, parse_hours, parse_when

_RESOURCE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?[bB])?\s*")
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
COUNT_MAX = 4096
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)\s*bit(?:/s|ps)?\s*", re.IGNORECASE)
_RATE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*")
_DURATION_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def size_bytes(text: str | int | float) -> int:
    """Bytes of "512M", "8G", "1.5 GiB" or a number; units are powers of 1024. Raises Usage."""
    if isinstance(text, int | float):
        return int(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Usage(f"{text!r} is not a size", remedy='Write it like "512M" or "8G".')
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def duration_s(text: str | int | float) -> float:
    """Seconds of "90", "50ms", "5m", "2h", "1d" or a number. Raises Usage."""
    if isinstance(text, int | float):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Usage(f"{text!r} is not a duration", remedy='Write it like "30s", "5m" or "2h".')
    return float(match[1]) * _DURATION_UNITS[match[2] or ""]


def rate_bytes_per_s(text: str) -> float:
    """Bytes per second of "20Mbit", "1.5 Gbit/s"; units are powers of 1000, as networks count. Raises Usage."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise Usage(f"{text!r} is not a rate", remedy="Write it like `20Mbit` or `500kbit`.")
    return float(match[1]) * _RATE_UNITS[match[2].lower()] / 8


def show_rate(bytes_per_s: float) -> str:
    """ "20 Mbit/s": two or three digits and a unit, for people."""
    bits = bytes_per_s * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits < 1000 or unit == "Gbit/s":
            return f"{bits:.0f} {unit}" if bits >= 10 or unit == "bit/s" else f"{bits:.1f} {unit}"
        bits /= 1000
    raise AssertionError("the loop returns")


def show_size(size: float) -> str:
    """ "1.5 GB": two or three digits and a unit, for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1024 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the loop returns")


def show_duration(seconds: float) -> str:
    """ "12 ms", "4.2 s", "3 min", "2 h", "5 d": for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.1f} ms"
    for limit, unit, divisor in ((60, "s", 1), (3600, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            value = seconds / divisor
            return f"{value:.1f} {unit}" if value < 10 and unit == "s" else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def hours_of_day(text: str) -> Hours:
    """The hours of "08-18" or "22:30-06:00". Raises Usage."""
    try:
        return parse_hours(text)
    except ValueError as error:
        raise Usage(str(error), remedy="Write them like `08-18` or `22:30-06:00`.") from None


def part_of_week(text: str) -> When:
    """The part of a week of "20-08", "sat,sun" or "mon-fri 20-08". Raises Usage."""
    try:
        return parse_when(text)
    except ValueError as error:
        raise Usage(str(error), remedy="Write it like `20-08`, `sat,sun` or `mon-fri 20-08`.") from None


def resources(words: Iterable[str]) -> tuple[dict[str, int], dict[str, str]]:
    """How much of what "cpu=4", "mem=8G", "disk=200G", "gpu=1" and "camera=/dev/video0" lend, and where what is a file
    is to be found. A word alone is one of it. Raises Usage."""
    lent: dict[str, int] = {}
    places: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not _RESOURCE.fullmatch(name) or name in (BOX, "relay") or name in lent or (equals and not text):
            raise Usage(
                f"`{word}` is nothing to lend", remedy="Write it like `cpu=4`, `mem=8G` or `camera=/dev/video0`."
            )
        if name in ("mem", "disk"):
            lent[name] = size_bytes(text)
        elif text.startswith("/"):
            lent[name], places[name] = 1, text
        elif not equals and name != "cpu":
            lent[name] = 1
        elif text.isdigit() and 0 < int(text) <= COUNT_MAX:
            lent[name] = int(text)
        else:
            raise Usage(f"`{word}` is no amount", remedy="Write a number, a size, or the path of a device.")
    return lent, places
