"""Entries of two devices become one: nothing is lost that nobody gave up, in whatever order they meet."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from croft.storage.formats import Entry, Version
from croft.storage.merging import VERSIONS_MAX, bounded, conflicting, merged, with_version, without_versions

DESK, TRAIN = b"d" * 32, b"t" * 32


def version(number: int, device: bytes = DESK, at: float = 0.0) -> Version:
    return Version(number, device, at, 0, None)


VERSIONS = st.lists(
    st.builds(version, st.integers(1, 9), st.sampled_from([DESK, TRAIN]), st.floats(0, 9)),
    max_size=6,
    unique_by=lambda one: (one.number, one.device),
)


@settings(deadline=None)
@given(VERSIONS, VERSIONS, st.integers(0, 9), st.integers(0, 9))
def test_both_sides_come_to_the_same_and_stay_there(
    mine: list[Version], theirs: list[Version], my_dropped: int, their_dropped: int
) -> None:
    shared = {(one.number, one.device): one for one in mine}
    theirs = [shared.get((one.number, one.device), one) for one in theirs]
    here, there = Entry(b"a", mine, my_dropped), Entry(b"a", theirs, their_dropped)

    both = merged(here, there)

    assert both == merged(there, here) == merged(both, there) == merged(both, here)
    kept = {(one.number, one.device) for one in both.versions}
    wanted = {(one.number, one.device) for one in [*mine, *theirs]}
    assert kept == {one for one in wanted if one[0] > max(my_dropped, their_dropped)}


def test_two_versions_of_one_number_are_a_conflict_until_the_next_one() -> None:
    apart = merged(Entry(b"a", [version(1), version(2)]), Entry(b"a", [version(1), version(2, TRAIN)]))
    assert [one.device for one in conflicting(apart)] == [DESK, TRAIN]

    settled = with_version(apart, b"a", version(0))
    assert conflicting(settled) == [] and settled.versions[-1].number == 3


def test_what_was_given_up_does_not_come_back_by_a_device_that_has_not_heard_of_it() -> None:
    old = Entry(b"a", [version(1), version(2)])
    gone = without_versions(old)

    assert merged(gone, old).versions == []
    assert merged(gone, with_version(old, b"a", version(0))).versions == [version(3)]


def test_what_another_device_put_meanwhile_is_not_given_up_with_what_was_known() -> None:
    old = Entry(b"a", [version(1)])
    gone = without_versions(with_version(old, b"a", version(0)))
    apart = with_version(old, b"a", version(0, TRAIN))

    assert merged(gone, apart).versions == merged(apart, gone).versions == [version(2, TRAIN)]
    assert with_version(merged(gone, apart), b"a", version(0)).versions[-1].number == 3


def test_the_oldest_versions_are_given_up_where_there_are_too_many() -> None:
    many = bounded(Entry(b"a", [version(number) for number in range(1, VERSIONS_MAX + 4)]))

    assert len(many.versions) == VERSIONS_MAX and many.dropped == 3
    assert merged(many, Entry(b"a", [version(2)])) == many
