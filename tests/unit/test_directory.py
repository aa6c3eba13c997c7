"""Which members fit a query."""

from __future__ import annotations

import dataclasses

import pytest

from croft.model.ids import PeerId
from croft.overlay.directory import Listing, Query, search

GB = 1 << 30
BIG = Listing(PeerId("big"), 8, 2, 16 * GB, 100 * GB, "x86_64", "3.11", "A", ("gpu", "quiet"), 0.010)
NEAR = Listing(PeerId("near"), 2, 0, 4 * GB, 10 * GB, "aarch64", "3.12", "B", (), 0.001)
FAR = Listing(PeerId("far"), 6, 0, 8 * GB, 10 * GB, "x86_64", "3.11", "C", ("gpu",), None)
IDLER = Listing(PeerId("idler"), 0, 0, 0, 0, "x86_64", "3.11", "A", (), 0.005)
ALL = [NEAR, IDLER, FAR, BIG]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), ["big", "far", "near", "idler"]),
        (Query(cpus=1), ["big", "far", "near"]),
        (Query(cpus=6), ["big", "far"]),
        (Query(cpus=7), []),
        (Query(memory_bytes=12 * GB), ["big"]),
        (Query(memory_bytes=13 * GB), []),
        (Query(disk_bytes=11 * GB), ["big"]),
        (Query(round_trip_s=0.010), ["big", "near", "idler"]),
        (Query(round_trip_s=0.002), ["near"]),
        (Query(machine="aarch64"), ["near"]),
        (Query(python="3.12"), ["near"]),
        (Query(grade="A"), ["big", "idler"]),
        (Query(grade="B"), ["big", "near", "idler"]),
        (Query(grade="D"), ["big", "far", "near", "idler"]),
        (Query(labels=frozenset(["gpu"])), ["big", "far"]),
        (Query(labels=frozenset(["gpu", "quiet"])), ["big"]),
    ],
)
def test_who_has_all_that_is_wanted_is_found_the_freest_first(query: Query, expected: list[str]) -> None:
    assert [one.peer for one in search(query, ALL)] == expected


def test_a_peer_leaves_the_set_as_it_is_loaded() -> None:
    query = Query(cpus=4, memory_bytes=8 * GB)

    assert search(query, [BIG]) == [BIG]
    assert search(query, [dataclasses.replace(BIG, slots_busy=5)]) == []


def test_a_grade_that_nobody_knows_is_no_good_one() -> None:
    assert search(Query(grade="D"), [dataclasses.replace(BIG, grade="Z")]) == []
