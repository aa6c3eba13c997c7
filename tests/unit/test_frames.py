"""Frames, cut at any place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from croft.errors import PeerMisbehaved
from croft.wire import frames
from croft.wire.frames import FrameReader


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=40))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data, found, reader = frames.join(payloads), [], FrameReader(step="test")
    for cut in cuts:
        part, data = data[:cut], data[cut:]
        found += reader.feed(part)
    found += reader.feed(data)

    assert found == payloads
    assert reader.is_empty


def test_one_frame_alone_is_the_same_as_among_others() -> None:
    assert frames.frame(b"x") == frames.join([b"x"]) == b"\0\0\0\x01x"


def test_an_incomplete_frame_is_kept() -> None:
    reader = FrameReader(step="test")

    assert reader.feed(frames.frame(b"hello")[:-1]) == []
    assert not reader.is_empty
    assert reader.feed(b"o") == [b"hello"]


def test_a_frame_over_the_limit_is_refused_before_its_bytes_come() -> None:
    reader = FrameReader(100, step="test")
    reader.feed(frames.frame(bytes(100)))

    with pytest.raises(PeerMisbehaved, match="101"):
        reader.feed((101).to_bytes(4, "big"))
