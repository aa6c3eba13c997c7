"""What a task is given for values of other tasks, and for stored files."""

from __future__ import annotations

import io
import mmap
import pickle

import numpy as np
import pytest

from croft.compute.worker_values import ClassesMissing, file_of, value_of
from croft.wire.values import encode_in_parts, encode_value


class Own:
    pass


def in_pages(data: bytes) -> mmap.mmap:
    pages = mmap.mmap(-1, len(data), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages[:] = data
    return pages


def test_a_value_comes_in_the_safe_codec_and_its_arrays_stay_in_the_buffer() -> None:
    buffer = in_pages(b"".join(encode_in_parts({"array": np.arange(100_000)})))

    value = value_of(buffer)

    assert isinstance(value, dict) and (value["array"] == np.arange(100_000)).all()
    value["array"][0] = 7  # what a task changes is its own


def test_a_value_may_come_as_a_pickle() -> None:
    assert isinstance(value_of(pickle.dumps(Own())), Own)


def test_an_empty_dict_is_no_pickle() -> None:
    assert value_of(encode_value({})) == {}


def test_a_value_whose_classes_are_not_here_says_so() -> None:
    with pytest.raises(ClassesMissing):
        value_of(b"\xc1 nothing that anybody encodes")


def test_a_stored_file_is_read_as_any_file() -> None:
    file = file_of(in_pages(b"one\ntwo\nthree"), "notes")

    assert (file.name, file.readline(), file.read(3), file.tell()) == ("notes", b"one\n", b"two", 7)
    assert file.seek(-5, io.SEEK_END) == 8 and file.read() == b"three" and file.read() == b""
    assert bytes(file.getbuffer()) == b"one\ntwo\nthree" and file.getbuffer().readonly
    assert file.seek(100) == 100 and file.read() == b""
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"")
