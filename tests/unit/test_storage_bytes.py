"""Shares, their ids and seals: what is read back is what was put, or it is refused."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from croft.errors import Failed, PeerMisbehaved
from croft.storage import erasure, merkle, sealing
from croft.storage.merkle import LEAF_BYTES
from croft.storage.sealing import Method, seal, unseal

KEY = bytes(range(32))


def coded(k: int, n: int, size: int, code: erasure.Code) -> bytearray:
    buffer = bytearray(Random(1).randbytes(k * size) + bytes((n - k) * size))
    code.add_parity(buffer, size)
    return buffer


@pytest.mark.parametrize(("k", "n"), [(1, 3), (3, 5), (4, 8), (10, 20), (3, 3)])
@pytest.mark.parametrize("has_isal", [True, False])
def test_any_k_shares_give_all_others_back(k: int, n: int, has_isal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_isal:
        monkeypatch.setattr(erasure, "_isal", lambda: None)
    code, size, chance = erasure.Code(k, n), 96, Random(2)
    whole = coded(k, n, size, code)
    for _ in range(20):
        have = chance.sample(range(n), k)
        want = [index for index in range(n) if index not in have]
        buffer = bytearray(whole)
        for index in want:
            buffer[index * size : (index + 1) * size] = bytes(size)
        code.rebuild(buffer, size, have, want)
        assert buffer == whole


@pytest.mark.parametrize(("k", "n"), [(1, 2), (2, 5), (4, 8), (10, 20), (29, 80)])
def test_both_libraries_make_the_same_bytes(k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = coded(k, n, 100, erasure.Code(k, n))
    monkeypatch.setattr(erasure, "_isal", lambda: None)

    assert coded(k, n, 100, erasure.Code(k, n)) == fast


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9 * LEAF_BYTES), st.data())
def test_every_part_of_a_share_is_proved_and_no_other_bytes_are(size: int, data: st.DataObject) -> None:
    share = Random(size).randbytes(size)
    offset = data.draw(st.integers(0, size - 1))
    at, length = merkle.leaf_span(offset, data.draw(st.integers(1, size - offset)), size)
    part, proof = share[at : at + length], merkle.prove(merkle.leaves(share), at, length)

    merkle.check(merkle.share_id(share), size, at, part, proof)

    flipped = bytearray(part)
    flipped[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for wrong in (
        lambda: merkle.check(merkle.share_id(share), size, at, bytes(flipped), proof),
        lambda: merkle.check(merkle.share_id(share), size, at, part, [*proof, bytes(32)]),
        lambda: merkle.check(merkle.share_id(share), size + 1, at, part, proof),
    ):
        with pytest.raises(PeerMisbehaved):
            wrong()
    if proof:
        with pytest.raises(PeerMisbehaved):
            merkle.check(merkle.share_id(share), size, at, part, proof[:-1])


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=3000), st.integers(0, 1 << 40), st.booleans())
def test_what_was_sealed_opens_under_its_key_and_number_alone(data: bytes, number: int, is_long: bool) -> None:
    data = data * 50 if is_long else data
    into = bytearray(sealing.sealed_bytes_max(len(data)))
    size, method = seal(KEY, number, data, memoryview(into))
    sealed = bytes(into[:size])

    assert bytes(unseal(KEY, number, sealed, method, len(data))) == data
    for key, other, bytes_ in (
        (bytes(32), number, sealed),
        (KEY, number + 1, sealed),
        (KEY, number, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (KEY, number, b"short"),
    ):
        with pytest.raises(Failed):
            unseal(key, other, bytes_, method, len(data))


def test_what_compresses_is_compressed_and_what_does_not_stays_as_it_is() -> None:
    into = memoryview(bytearray(1 << 20))

    assert seal(KEY, 0, b"again " * 20_000, into)[1] is Method.ZSTD
    assert seal(KEY, 0, Random(3).randbytes(300_000), into)[1] is Method.PLAIN


def test_a_few_bytes_do_not_open_to_more_than_was_said() -> None:
    into = bytearray(1 << 20)
    size, method = seal(KEY, 0, bytes(4 << 20), memoryview(into))

    with pytest.raises(Failed):
        unseal(KEY, 0, bytes(into[:size]), method, 1000)


def test_sizes_fall_into_few_classes_and_padding_costs_an_eighth_at_most() -> None:
    sizes = range(1, 100_000, 7)

    assert all(size <= sealing.padded(size) <= size * 1.125 for size in sizes)
    assert len({sealing.padded(size) for size in sizes}) < 220
    assert sealing.padded(sealing.SEGMENT_BYTES) == sealing.SEGMENT_BYTES
