"""The safe codec over arbitrary values and arbitrary bytes."""

from __future__ import annotations

import datetime
import pathlib
import zoneinfo
from fractions import Fraction

import hypothesis.extra.numpy as numpy_values
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from croft.errors import CodecError
from croft.wire.values import decode_value, encode_value
from support.carried import CARRIED, Colour, Permission, Point, Row, same

ZONES = st.sampled_from(
    [None, datetime.UTC, datetime.timezone(datetime.timedelta(seconds=-90)), zoneinfo.ZoneInfo("America/New_York")]
)
HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions().map(Fraction)
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=ZONES)
    | st.times(timezones=ZONES)
    | st.timedeltas()
    | st.sampled_from(list(Colour))
    | st.integers(0, 7).map(Permission)
    | st.builds(range, st.integers(), st.integers(), st.integers().filter(bool))
    | st.text("ab/", min_size=1).map(pathlib.PurePosixPath),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4) | st.builds(Point, inner, inner)
    ),
    max_leaves=8,
)
ARRAYS = numpy_values.arrays(
    st.one_of(
        numpy_values.scalar_dtypes(),
        numpy_values.array_dtypes(),
        numpy_values.unicode_string_dtypes(),
        numpy_values.byte_string_dtypes(),
    ),
    numpy_values.array_shapes(min_dims=0, min_side=0, max_side=3),
)
VALUES = st.recursive(
    HASHABLE | st.floats() | st.binary().map(bytearray) | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=5)
        | st.sets(HASHABLE, max_size=5)
        | st.builds(Row, inner, inner)
    ),
    max_leaves=20,
)


@given(VALUES)
@example([0, False, 0.0, -0.0])
@example({1: [], 0.5: ()})
def test_every_carried_value_comes_back_the_same(value: object) -> None:
    assert same(decode_value(encode_value(value)), value)


@given(VALUES)
def test_an_encoding_is_the_encoding_of_what_it_decodes_to(value: object) -> None:
    data = encode_value(value)
    assert encode_value(decode_value(data)) == data


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_value_or_a_codec_error(data: bytes) -> None:
    try:
        decode_value(data)
    except CodecError as error:
        assert error.message


PIECES = sorted({encode_value(value) for value in CARRIED.values()})


@given(st.data(), st.sampled_from(PIECES))
def test_mutated_encodings_give_a_value_or_a_codec_error(data: st.DataObject, encoding: bytes) -> None:
    mutated = bytearray(encoding)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        match data.draw(st.sampled_from(["set", "cut", "splice"])):
            case "set":
                mutated[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del mutated[at : at + data.draw(st.integers(1, 4))]
            case _:
                mutated[at:at] = data.draw(st.sampled_from(PIECES) | st.binary(max_size=6))
    try:
        decode_value(bytes(mutated))
    except CodecError as error:
        assert error.message


@given(st.integers(0, 31), st.sampled_from(PIECES), st.sampled_from(PIECES))
def test_any_content_under_any_code_gives_a_value_or_a_codec_error(code: int, first: bytes, second: bytes) -> None:
    content = b"\x92" + first + second
    data = b"\xc9" + len(content).to_bytes(4, "big") + bytes([code + 1]) + content
    try:
        decode_value(data)
    except CodecError as error:
        assert error.message


def test_every_one_byte_change_of_every_vector_gives_a_value_or_a_codec_error() -> None:
    outcomes = {"value": 0, "refused": 0}
    for encoding in PIECES:
        for at in range(len(encoding)):
            for change in (1, 0x80, 0xFF):
                mutated = bytearray(encoding)
                mutated[at] ^= change
                try:
                    decode_value(bytes(mutated))
                    outcomes["value"] += 1
                except CodecError:
                    outcomes["refused"] += 1
    assert outcomes["refused"] > 1000
    assert outcomes["value"] > 100


def test_numpy_values_never_share_memory_with_the_message() -> None:
    data = bytearray(encode_value(np.zeros(4)))
    decoded = decode_value(memoryview(data))
    data[-1] = 0x7F
    assert isinstance(decoded, np.ndarray)
    assert decoded.tolist() == [0.0] * 4
