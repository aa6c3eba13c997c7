"""Decides what others' writing by a link makes of an owner's files: what fits, what is new, what conflicts. Sans-IO.

A writer goes on from what it saw by the link, as another device of the owner would, and each version of it is known by
its device and the time it was put; so taking in the same one again, here or on another device, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from croft.errors import CroftError, PeerMisbehaved, Usage
from croft.storage.formats import Entry, Version, check_content, check_name
from croft.storage.links import LinkedFile, LinkedFiles
from croft.storage.merging import VERSIONS_MAX, bounded, conflicting, in_order

PROPOSED_FILES_MAX: Final = 10_000
"""Versions that one writer may have waiting for an owner."""
PROPOSED_BYTES_MAX: Final = 64 << 30
NUMBER_MAX: Final = 1 << 40
TIME_NS_MAX: Final = 1 << 63
MODE_BITS: Final = 0o777
STEP: Final = "proposal"


def below(name: bytes, whole: bytes) -> bytes | None:
    """What a file is called below a link's name: empty if it is that very file, None if it is neither."""
    if whole == name:
        return b""
    return whole[len(name) + 1 :] if whole.startswith(name + b"/") else None


def led_to(name: bytes, entries: Iterable[Entry], *, is_written: bool) -> list[LinkedFile]:
    """What a link to `name` shows of these entries. Whoever writes has to know of what was removed, too."""
    found: list[LinkedFile] = []
    for entry in entries:
        if (at := below(name, entry.name)) is None:
            continue
        newest = conflicting(entry) or entry.versions[-1:]
        if is_written and not newest:
            newest = [Version(entry.dropped, b"", 0.0, 0, None)]
        found += [LinkedFile(at, one) for one in newest if is_written or one.content is not None]
    return found


def seen(files: LinkedFiles, proposals: Iterable[LinkedFiles]) -> dict[bytes, Entry]:
    """The files behind a link as they are with what was written and is not taken in yet, by name."""
    versions: dict[bytes, list[Version]] = {}
    for listed in (files, *proposals):
        for file in listed.files:
            known = versions.setdefault(file.name, [])
            if all((one.device, one.at) != (file.version.device, file.version.at) for one in known):
                known.append(file.version)
    return {name: Entry(name, sorted(some, key=in_order)) for name, some in sorted(versions.items())}


def next_number(entry: Entry | None) -> int:
    """Of a version that follows what was seen of a file."""
    return 1 if entry is None else max((one.number for one in entry.versions), default=0) + 1


def check_place(name: bytes, *, is_folder: bool) -> None:
    """Raises Usage unless there may be a file of this name behind a link: below a folder, or the file itself."""
    if not is_folder:
        if name:
            raise Usage("this link is to one file", remedy="Say the line alone, without a name after it.")
        return
    if not name:
        raise Usage("this link is to a folder", remedy="Say the file's name after the line: LINE/name.")
    check_name(name)
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise Usage(f"a file cannot be called {name[:60]!r}", remedy="Its name is parts divided by /.")


def check_proposed(files: LinkedFiles, device: bytes, *, is_folder: bool) -> None:
    """Raises PeerMisbehaved unless a writer's device may have put all of this."""
    if len(files.files) > PROPOSED_FILES_MAX:
        raise PeerMisbehaved(f"{len(files.files)} files at once", step=STEP)
    count: dict[bytes, int] = {}
    for file in files.files:
        version = file.version
        count[file.name] = count.get(file.name, 0) + 1
        is_sound = (
            version.device == device
            and 0 < version.number < NUMBER_MAX
            and math.isfinite(version.at)
            and abs(version.mtime_ns) < TIME_NS_MAX
            and version.size == (0 if version.content is None else version.content.size)
            and count[file.name] <= VERSIONS_MAX
        )
        try:
            check_place(file.name, is_folder=is_folder)
            if version.content is not None:
                check_content(version.content)
        except CroftError as error:
            raise PeerMisbehaved(error.message, step=STEP) from None
        if not is_sound:
            raise PeerMisbehaved("a version whose numbers do not fit", step=STEP)
    if (size := sum(file.version.size for file in files.files)) > PROPOSED_BYTES_MAX:
        raise PeerMisbehaved(f"{size} bytes at once", step=STEP)


def news(entries: Mapping[bytes, Entry | None], files: LinkedFiles) -> list[LinkedFile]:
    """What of a writer's files is not among the owner's yet; `entries` by the names behind the link."""
    known = {
        (name, one.device, one.at) for name, entry in entries.items() if entry is not None for one in entry.versions
    }
    return [file for file in files.files if (file.name, file.version.device, file.version.at) not in known]


def with_taken(known: Entry | None, name: bytes, theirs: Sequence[Version]) -> Entry:
    """The owner's entry with new versions of one writer's device.

    The last of them is never hidden: if the owner's file went on meanwhile, it stands beside the newest, as a conflict.
    """
    entry = known or Entry(name, [])
    versions = list(entry.versions)
    known_ones = {(one.device, one.at) for one in versions}
    ordered = sorted((one for one in theirs if (one.device, one.at) not in known_ones), key=in_order)
    for version in ordered:
        newest = max([entry.dropped, *(one.number for one in versions)])
        number = max(version.number, newest) if version is ordered[-1] else version.number
        if number <= entry.dropped or any((one.number, one.device) == (number, version.device) for one in versions):
            number = newest + 1
        versions.append(replace(version, number=number))
    return bounded(replace(entry, versions=sorted(versions, key=in_order)))
