"""What others write by links becomes versions of the owner's files: nothing is lost, hidden, or taken in twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from croft.errors import PeerMisbehaved, Usage
from croft.storage.formats import FORMAT, Content, Entry, Version
from croft.storage.links import LinkedFile, LinkedFiles
from croft.storage.merging import VERSIONS_MAX, conflicting, with_version
from croft.storage.proposing import (
    NUMBER_MAX,
    PROPOSED_BYTES_MAX,
    PROPOSED_FILES_MAX,
    check_place,
    check_proposed,
    led_to,
    news,
    next_number,
    seen,
    with_taken,
)

OWNER, WRITER, OTHER = b"o" * 32, b"w" * 32, b"x" * 32
EMPTY = Content(FORMAT, 0, b"k" * 32, 0, [])


def version(number: int, device: bytes = OWNER, at: float = 0.0, content: Content | None = EMPTY) -> Version:
    return Version(number, device, at, 0, content)


def linked(*versions: Version, name: bytes = b"page") -> LinkedFiles:
    return LinkedFiles(FORMAT, [LinkedFile(name, one) for one in versions])


# --- what is seen by a link ------------------------------------------------------------------------------------------


def test_a_link_shows_the_newest_of_each_file_below_its_name_and_nothing_else() -> None:
    entries = [
        Entry(b"site/gone", [version(1), version(2, content=None)]),
        Entry(b"site/page", [version(1), version(2), version(2, OTHER)]),
        Entry(b"site/dropped", [], 4),
        Entry(b"sites", [version(1)]),
    ]

    read = led_to(b"site", entries, is_written=False)
    assert [(file.name, file.version.number, file.version.device) for file in read] == [
        (b"page", 2, OWNER),
        (b"page", 2, OTHER),
    ]
    written = led_to(b"site", entries, is_written=True)
    assert [(file.name, file.version.number) for file in written if file.version.content is None] == [
        (b"gone", 2),
        (b"dropped", 4),
    ]
    assert [file.name for file in led_to(b"sites", entries, is_written=False)] == [b""]


def test_what_waits_for_the_owner_is_seen_as_the_newest() -> None:
    entries = seen(
        linked(version(3)), [linked(version(4, WRITER, 1.0), version(5, WRITER, 2.0)), linked(version(1), name=b"new")]
    )

    assert [one.number for one in entries[b"page"].versions] == [3, 4, 5] and list(entries) == [b"new", b"page"]
    assert next_number(entries[b"page"]) == 6 and next_number(None) == 1


# --- what the owner makes of it --------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.sampled_from([OWNER, WRITER, OTHER]), st.booleans()), max_size=12)


@settings(deadline=None)
@given(STEPS)
def test_whatever_owner_and_writers_do_nothing_is_lost_hidden_or_taken_twice(steps: list[tuple[bytes, bool]]) -> None:
    """A writer puts versions, and now and then the owner takes in what one of them has put by then."""
    entry: Entry | None = None
    shown = linked()
    waiting: dict[bytes, list[Version]] = {WRITER: [], OTHER: []}
    put: set[tuple[bytes, float]] = set()
    for at, (device, is_taken_in) in enumerate(steps, 1):
        if device == OWNER:
            entry = with_version(entry, b"page", version(0, OWNER, at))
            put.add((OWNER, at))
        elif is_taken_in:
            new = news({b"page": entry}, linked(*waiting[device]))
            if new:
                entry = with_taken(entry, b"page", [file.version for file in new])
                last = max(new, key=lambda file: file.version.at).version
                newest = {(one.device, one.at) for one in conflicting(entry) or entry.versions[-1:]}
                assert (device, last.at) in newest, "what was written last is among the newest"
            assert news({b"page": entry}, linked(*waiting[device])) == []
            waiting[device] = []
            shown = linked(*(conflicting(entry) or entry.versions[-1:])) if entry else linked()
        else:
            known = seen(shown, [linked(*waiting[device])]).get(b"page")
            waiting[device].append(version(next_number(known), device, at))
            put.add((device, at))
    there = [] if entry is None else [(one.device, one.at) for one in entry.versions]
    assert len(there) == len(set(there))
    assert put == set(there) | {(device, one.at) for device, some in waiting.items() for one in some}
    if entry is not None:
        numbers = [(one.number, one.device) for one in entry.versions]
        assert len(numbers) == len(set(numbers)) and numbers == sorted(numbers, key=lambda one: one[0])


def test_an_entry_takes_in_what_its_owner_gave_up_meanwhile_as_something_new() -> None:
    taken = with_taken(Entry(b"page", [], 7), b"page", [version(3, WRITER, 1.0)])

    assert [one.number for one in taken.versions] == [8] and taken.dropped == 7


def test_an_entry_never_grows_beyond_its_bound() -> None:
    full = Entry(b"page", [version(number) for number in range(1, VERSIONS_MAX + 1)])

    taken = with_taken(full, b"page", [version(VERSIONS_MAX + 1, WRITER, 1.0)])
    assert len(taken.versions) == VERSIONS_MAX and taken.versions[-1].device == WRITER


# --- what fits -------------------------------------------------------------------------------------------------------


def test_names_behind_a_link_stay_behind_it() -> None:
    for name in (b"page", b"sub/page"):
        check_place(name, is_folder=True)
    check_place(b"", is_folder=False)
    for name in (b"", b"/page", b"a//b", b"../page", b"a/../../b", b"a/.", b"a\0b", b"n" * 5_000):
        with pytest.raises(Usage):
            check_place(name, is_folder=True)
    with pytest.raises(Usage, match="one file"):
        check_place(b"page", is_folder=False)


def test_what_no_writer_can_have_put_is_refused() -> None:
    sound = version(1, WRITER, 1.0)
    check_proposed(linked(sound), WRITER, is_folder=True)
    large = Content(FORMAT, PROPOSED_BYTES_MAX + 1, b"k" * 32, 1, [])
    for bad in (
        replace(sound, device=OWNER),
        replace(sound, number=0),
        replace(sound, number=NUMBER_MAX),
        replace(sound, at=float("nan")),
        replace(sound, mtime_ns=1 << 64),
        replace(sound, size=1),
        replace(sound, content=Content(2, 0, b"k" * 32, 0, [])),
        replace(sound, content=large, size=large.size),
    ):
        with pytest.raises(PeerMisbehaved):
            check_proposed(linked(bad), WRITER, is_folder=True)
    with pytest.raises(PeerMisbehaved, match="files at once"):
        check_proposed(linked(*[sound] * (PROPOSED_FILES_MAX + 1)), WRITER, is_folder=True)
    with pytest.raises(PeerMisbehaved):
        check_proposed(linked(*[sound] * (VERSIONS_MAX + 1)), WRITER, is_folder=True)
    with pytest.raises(PeerMisbehaved, match="cannot be called"):
        check_proposed(linked(sound, name=b"../x"), WRITER, is_folder=True)
