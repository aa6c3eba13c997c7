"""Decides what a file's entry is when two devices have changed the list apart. Sans-IO.

Versions are a set: what either side has, both have afterwards, but for what one of them has given up. Two that got one
number from different devices are a conflict: both stay, and the next version settles it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from croft.storage.formats import Bounds, Entry, Version

VERSIONS_MAX = 64
"""Of one file; older ones are given up."""
ANY_DEVICE = b""


def in_order(version: Version) -> tuple[int, float, bytes]:
    """Versions sort so, alike on all devices."""
    return version.number, version.at, version.device


def merged(mine: Entry | None, theirs: Entry) -> Entry:
    """The entry that takes in both."""
    if mine is None:
        return theirs
    gone = _gone(mine)
    for device, number in _gone(theirs).items():
        gone[device] = max(number, gone.get(device, 0))
    known = {(version.number, version.device): version for version in [*mine.versions, *theirs.versions]}
    left = [one for one in known.values() if one.number > max(gone.get(one.device, 0), gone.get(ANY_DEVICE, 0))]
    dropped = max(mine.dropped, theirs.dropped)
    return bounded(Entry(mine.name, sorted(left, key=in_order), dropped, sorted(gone.items())))


def with_version(known: Entry | None, name: bytes, version: Version) -> Entry:
    """The entry with one version more, whose number is set here."""
    entry = known or Entry(name, [])
    number = max([entry.dropped, *(one.number for one in entry.versions)]) + 1
    return bounded(replace(entry, versions=[*entry.versions, replace(version, number=number)]))


def with_bounds(changes: Mapping[bytes, Version | None], bounds: Bounds | None) -> dict[bytes, Version | None]:
    """The same, and who may hold what nobody has said it of."""
    return {
        name: version if version is None or version.bounds else replace(version, bounds=bounds)
        for name, version in changes.items()
    }


def without_versions(entry: Entry) -> Entry:
    """What is left of a file that is given up: enough to say so to other devices."""
    return _without(entry, entry.versions)


def conflicting(entry: Entry) -> list[Version]:
    """The newest versions, if there are several; else none."""
    newest = [version for version in entry.versions if version.number == entry.versions[-1].number]
    return newest if len(newest) > 1 else []


def bounded(entry: Entry) -> Entry:
    """The entry without its oldest versions, if it has too many."""
    oldest = entry.versions[:-VERSIONS_MAX]
    return _without(entry, oldest) if oldest else entry


def _without(entry: Entry, versions: Iterable[Version]) -> Entry:
    """The entry once these, the oldest ones, are given up."""
    gone, dropped, left = _gone(entry), entry.dropped, list(entry.versions)
    for version in versions:
        gone[version.device] = max(version.number, gone.get(version.device, 0))
        dropped = max(version.number, dropped)
        left.remove(version)
    return Entry(entry.name, left, dropped, sorted(gone.items()))


def _gone(entry: Entry) -> dict[bytes, int]:
    """Up to which number versions were given up, by device; earlier Croft gave up those of all devices alike."""
    if entry.dropped and not entry.given_up:
        return {ANY_DEVICE: entry.dropped}
    return dict(entry.given_up)
