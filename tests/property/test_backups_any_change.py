"""Chunks of any bytes, and snapshots of any times."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from croft.storage.chunking import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunker
from croft.storage.pruning import DEAD_SHARE_MAX, PackUse, plan
from croft.storage.retention import Policy, kept

CHUNKER = Chunker(bytes(32))
COUNTS = st.integers(0, 6)
POLICIES = st.builds(Policy, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
TIMES = st.dictionaries(st.integers(1, 10_000), st.floats(0, 4e9), max_size=60)


def cut_by_windows(data: bytes, window: int) -> list[bytes]:
    held, chunks = bytearray(), []
    for at in range(0, len(data), window):
        held += data[at : at + window]
        used = 0
        for chunk in CHUNKER.cut(held, is_end=False):
            used += len(chunk)
            chunks.append(bytes(chunk))
            chunk.release()
        held = held[used:]
    return chunks + [bytes(chunk) for chunk in CHUNKER.cut(held, is_end=True)]


@given(st.integers(0, 1 << 32), st.integers(0, 9 << 20), st.integers(1 << 18, 5 << 20))
def test_where_bytes_are_cut_does_not_depend_on_how_they_are_read(seed: int, size: int, window: int) -> None:
    data = Random(seed).randbytes(size)

    whole = [bytes(chunk) for chunk in CHUNKER.cut(data, is_end=True)]

    assert b"".join(whole) == data and cut_by_windows(data, window) == whole
    assert all(CHUNK_BYTES_MIN <= len(chunk) <= CHUNK_BYTES_MAX for chunk in whole[:-1])


@given(st.integers(0, 1 << 32), st.integers(0, 6 << 20), st.integers(1, 1_000))
def test_a_change_in_the_middle_moves_few_cuts(seed: int, at: int, size: int) -> None:
    random = Random(seed)
    data, added = random.randbytes(8 << 20), random.randbytes(size)

    before = {bytes(chunk) for chunk in CHUNKER.cut(data, is_end=True)}
    after = {bytes(chunk) for chunk in CHUNKER.cut(data[:at] + added + data[at:], is_end=True)}

    assert len(after - before) <= 5


@given(POLICIES, TIMES)
def test_a_policy_keeps_the_newest_and_never_more_than_it_says(policy: Policy, times: dict[int, float]) -> None:
    keep = kept(policy, times)

    assert keep <= times.keys()
    if policy.keeps_everything:
        assert keep == times.keys()
    elif times:
        assert max(times, key=lambda number: (times[number], number)) in keep
        most = policy.last + policy.hourly + policy.daily + policy.weekly + policy.monthly + policy.yearly
        assert len(keep) <= max(1, most)


@given(POLICIES, TIMES)
def test_forgetting_twice_is_forgetting_once(policy: Policy, times: dict[int, float]) -> None:
    keep = kept(policy, times)

    assert kept(policy, {number: times[number] for number in keep}) == keep


@given(POLICIES, TIMES, st.integers(0, 5))
def test_a_policy_that_wants_more_keeps_no_less(policy: Policy, times: dict[int, float], more: int) -> None:
    counts = [getattr(policy, name) + more for name in policy.__struct_fields__]

    assert policy.keeps_everything or kept(policy, times) <= kept(Policy(*counts), times)


@given(st.lists(st.tuples(st.integers(1, 1 << 23), st.floats(0, 1)), max_size=80))
def test_what_lives_is_never_in_a_pack_that_goes_as_it_is(packs: list[tuple[int, float]]) -> None:
    uses = [PackUse(number, size, int(size * share)) for number, (size, share) in enumerate(packs)]

    todo = plan(uses, 8 << 20)

    assert all(not uses[number].live_bytes for number in todo.drop)
    assert set(todo.drop).isdisjoint(todo.rewrite)
    left = [use for use in uses if use.number not in {*todo.drop, *todo.rewrite}]
    assert all(use.size_bytes - use.live_bytes <= use.size_bytes * DEAD_SHARE_MAX for use in left)
