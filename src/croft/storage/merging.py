"""Decides what a file's entry is when two devices have changed the list apart. Sans-IO.

Versions are a set: what either side has, both have afterwards, but for what one of them has given up. Two that got one
number from different devices are a conflict: both stay, and the next version settles it.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from croft.storage.formats import Bounds, Entry, Version

VERSIONS_MAX = 64
"""Of one file; older ones are given up."""


def in_order(version: Version) -> tuple[int, float, bytes]:
    """Versions sort so, alike on all devices."""
    return version.number, version.at, version.device


def merged(mine: Entry | None, theirs: Entry) -> Entry:
    """The entry that takes in both."""
    if mine is None:
        return theirs
    dropped = max(mine.dropped, theirs.dropped)
    known = {(version.number, version.device): version for version in [*mine.versions, *theirs.versions]}
    versions = sorted((version for version in known.values() if version.number > dropped), key=in_order)
    return bounded(Entry(mine.name, versions, dropped))


def with_version(known: Entry | None, name: bytes, version: Version) -> Entry:
    """The entry with one version more, whose number is set here."""
    entry = known or Entry(name, [])
    number = max([entry.dropped, *(one.number for one in entry.versions)]) + 1
    return bounded(Entry(name, [*entry.versions, replace(version, number=number)], entry.dropped))


def with_bounds(changes: Mapping[bytes, Version | None], bounds: Bounds | None) -> dict[bytes, Version | None]:
    """The same, and who may hold what nobody has said it of."""
    return {
        name: version if version is None or version.bounds else replace(version, bounds=bounds)
        for name, version in changes.items()
    }


def without_versions(entry: Entry) -> Entry:
    """What is left of a file that is given up: enough to say so to other devices."""
    return Entry(entry.name, [], max([entry.dropped, *(version.number for version in entry.versions)]))


def conflicting(entry: Entry) -> list[Version]:
    """The newest versions, if there are several; else none."""
    newest = [version for version in entry.versions if version.number == entry.versions[-1].number]
    return newest if len(newest) > 1 else []


def bounded(entry: Entry) -> Entry:
    """The entry without its oldest versions, if it has too many."""
    given_up = entry.versions[:-VERSIONS_MAX]
    if not given_up:
        return entry
    return Entry(entry.name, entry.versions[-VERSIONS_MAX:], max(entry.dropped, given_up[-1].number))
