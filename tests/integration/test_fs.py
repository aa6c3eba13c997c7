"""`croft://` for fsspec: what every file system promises, and the programs that people open it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy
import pandas
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests import abstract

from croft.fs import CroftFileSystem
from support import peers
from support.peers import RealPeer


@pytest.fixture(scope="module")
def pair() -> Iterator[list[RealPeer]]:
    """Ada, whose files they are, and Bob, who holds them."""
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob"])


@pytest.fixture(scope="module")
def home(pair: list[RealPeer]) -> str:
    return str(pair[0].home)


class CroftFixtures(abstract.AbstractFixtures):  # type: ignore[misc]  # the library is not typed
    @pytest.fixture(scope="class")
    def fs(self, home: str) -> CroftFileSystem:
        return CroftFileSystem(home=home)

    @pytest.fixture
    def fs_path(self) -> str:
        return "here"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture(scope="class")
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmp_path: Any) -> str:
        path: str = make_path_posix(str(tmp_path))
        return path


class TestCopy(abstract.AbstractCopyTests, CroftFixtures):  # type: ignore[misc]
    test_copy_glob_edge_cases = None  # of the library's own patterns, and slow


class TestGet(abstract.AbstractGetTests, CroftFixtures):  # type: ignore[misc]
    test_get_glob_edge_cases = None  # of the library's own patterns, and slow


class TestPut(abstract.AbstractPutTests, CroftFixtures):  # type: ignore[misc]
    test_put_glob_edge_cases = None  # of the library's own patterns, and slow


class TestPipe(abstract.AbstractPipeTests, CroftFixtures):  # type: ignore[misc]
    pass


class TestOpen(abstract.AbstractOpenTests, CroftFixtures):  # type: ignore[misc]
    pass


def test_pandas_writes_and_reads_a_table(home: str) -> None:
    frame = pandas.DataFrame({"day": range(1000), "name": [f"n{number}" for number in range(1000)]})
    options = {"home": home}

    frame.to_parquet("croft://tables/a.parquet", storage_options=options)
    frame.to_csv("croft://tables/a.csv", index=False, storage_options=options)

    assert pandas.read_parquet("croft://tables/a.parquet", storage_options=options).equals(frame)
    assert pandas.read_csv("croft://tables/a.csv", storage_options=options).equals(frame)


def test_zarr_writes_and_reads_an_array(home: str) -> None:
    data = numpy.arange(10_000).reshape(100, 100)
    options = {"home": home}

    made = zarr.create_array("croft://cube", shape=data.shape, chunks=(50, 50), dtype="i8", storage_options=options)
    made[:] = data

    assert (zarr.open_array("croft://cube", mode="r", storage_options=options)[10:60, 30:] == data[10:60, 30:]).all()


def test_a_file_is_read_by_ranges_and_its_versions_tell_apart(home: str) -> None:
    fs = CroftFileSystem(home=home, skip_instance_cache=True)
    data = os.urandom(3_000_000)
    fs.pipe_file("big", data)
    first = fs.ukey("big")

    assert fs.cat_file("big", 1_000_000, 1_000_010) == data[1_000_000:1_000_010]
    assert fs.cat_file("big", -5, None) == data[-5:]
    with fsspec.open("croft://big", "rb", home=home) as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]

    fs.pipe_file("big", b"small")
    assert fs.ukey("big") != first and fs.created("big") < fs.modified("big")
    fs.rm("big")
    assert not fs.exists("big")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("big")
    with pytest.raises(ValueError, match="'ab'"):
        fs.open("big", "ab")


def test_without_a_daemon_that_is_told(tmp_path: Any) -> None:
    with pytest.raises(OSError, match="not running"):
        CroftFileSystem(home=str(tmp_path), skip_instance_cache=True).cat_file("x")
