"""Row D10: work goes to where its data lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import croft
from support import peers
from support.moved import settled_bytes
from support.peers import RealPeer, two_lines, until

BLOB_BYTES = 500_000_000
MOVED_BYTES_MAX = 1_000_000


@pytest.fixture(scope="module")
def four() -> Iterator[list[RealPeer]]:
    """Four peers of four people."""
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd", "dan"], settings={"lend.disk": "2G"})


@pytest.fixture(scope="module")
def blob(four: list[RealPeer], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stored at Cyd's alone; its SHA-256."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(BLOB_BYTES // len(block)):
            piece = number.to_bytes(8, "big") + block[8:]
            digest.update(piece)
            file.write(piece)
    four[0].ok("put", str(path), "--on", "cyd", "--keep", "copies=1")
    path.unlink()
    return digest.hexdigest()


def test_d10_a_command_runs_where_its_stored_file_lies_and_hardly_a_byte_moves(four: list[RealPeer], blob: str) -> None:
    before = settled_bytes(four[0])
    assert before > BLOB_BYTES, "what was put is counted"

    ended = four[0].croft("run", "-v", "--stored", "blob:data/it", "--", "sha256sum", "data/it")

    assert ended.stdout.split()[0] == blob, ended.stderr
    assert "cyd" in ended.stderr
    assert settled_bytes(four[0]) - before < MOVED_BYTES_MAX


def test_elsewhere_the_file_is_brought(four: list[RealPeer], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for number in range(3):
        (tmp_path / "notes" / str(number)).write_bytes(os.urandom(300_000 * number))
    four[0].ok("put", "notes", "--on", "cyd", "--keep", "copies=1", cwd=tmp_path)

    said = four[0].ok("run", "--on", "dan", "--stored", "notes", "--", "sh", "-c", "cat notes/* | sha256sum")

    whole = b"".join((tmp_path / "notes" / str(number)).read_bytes() for number in range(3))
    assert said.split()[0] == hashlib.sha256(whole).hexdigest()


def test_shares_that_are_gone_from_where_they_were_put_are_noticed(four: list[RealPeer], tmp_path: Path) -> None:
    (tmp_path / "twice").write_bytes(os.urandom(700_000))
    four[0].ok("put", "twice", "--on", "bob,dan", "--keep", "copies=2", cwd=tmp_path)
    four[1].stop()
    for path in (four[1].home / "chunks").iterdir():
        path.unlink()
    four[1].start()

    said = four[0].ok("run", "--on", "bob", "--stored", "twice", "--", "sha256sum", "twice")

    assert said.split()[0] == hashlib.sha256((tmp_path / "twice").read_bytes()).hexdigest()


def test_a_name_that_is_not_stored_is_told(four: list[RealPeer]) -> None:
    error, hint = two_lines(four[0].croft("run", "--stored", "nothing", "--", "true"))
    assert "nothing" in error and "croft ls" in hint


def sum_of(file: BinaryIO) -> tuple[str, str]:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest(), file.name


def at_both_ends(file: BinaryIO) -> tuple[bytes, bytes, int]:
    first = file.read(3)
    size = file.seek(0, os.SEEK_END)
    file.seek(-3, os.SEEK_END)
    return first, file.read(), size


def test_d10_a_task_runs_where_its_stored_file_lies_and_hardly_a_byte_moves(
    four: list[RealPeer], tmp_path: Path
) -> None:
    (tmp_path / "film").write_bytes(data := os.urandom(90_000_000))
    four[0].ok("put", "film", "--on", "cyd", "--keep", "copies=1", cwd=tmp_path)
    before = settled_bytes(four[0])
    with four[0].grid() as grid:
        film = grid.storage.file("film")

        # On a machine that is slow, a copy might be begun elsewhere; of what is not deterministic there is none.
        once = croft.task(deterministic=False)(sum_of)
        assert grid.submit(once, film).result() == (hashlib.sha256(data).hexdigest(), "film")
        assert settled_bytes(four[0]) - before < MOVED_BYTES_MAX

        assert list(grid.map(at_both_ends, [film] * 3)) == [(data[:3], data[-3:], len(data))] * 3


def test_elsewhere_a_task_gets_its_stored_file_from_the_submitters_peer(four: list[RealPeer], tmp_path: Path) -> None:
    for name in ("page", "empty"):
        (tmp_path / name).write_bytes(os.urandom(3_000_000) if name == "page" else b"")
        four[0].ok("put", name, "--on", "cyd", "--keep", "copies=1", cwd=tmp_path)
    page = hashlib.sha256((tmp_path / "page").read_bytes()).hexdigest()
    before = disk_bytes(four[0])

    with four[0].grid() as grid:
        on_dan = croft.task(on="dan")(sum_of)
        asked = [grid.submit(on_dan, grid.storage.file("page")) for _ in range(3)]
        assert [one.result() for one in asked] == [(page, "page")] * 3
        assert grid.submit(on_dan, grid.storage.file("empty")).result()[0] == hashlib.sha256().hexdigest()
        # A newer version is another file; the one that was named stays what it was.
        old = grid.storage.file("page")
        grid.storage.put(b"new", "page")
        assert grid.submit(on_dan, old).result() == (page, "page")
        assert grid.submit(on_dan, grid.storage.file("page")).result()[0] == hashlib.sha256(b"new").hexdigest()
    until(lambda: disk_bytes(four[0]) < before + 1_000_000, "copies are dropped with the job")


def disk_bytes(peer: RealPeer) -> int:
    return sum(path.stat().st_blocks * 512 for path in (peer.home / "chunks").glob("*.seg"))


def test_near_has_peers_asked_first_that_hold_the_files(four: list[RealPeer], tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    for number in range(2):
        (tmp_path / "shots" / str(number)).write_bytes(os.urandom(400_000))
    four[0].ok("put", "shots", "--on", "bob", "--keep", "copies=1", cwd=tmp_path)

    with four[0].grid() as grid:
        results = grid.map(abs, [-1], near="shots")
        assert list(results) == [1] and set(results.done_by) == {"bob"}
        with pytest.raises(croft.NotFound):
            list(grid.map(abs, [-1], near="nothing"))
        with pytest.raises(croft.NotFound):
            grid.storage.file("nothing")
        with pytest.raises(croft.Usage):
            grid.map(abs, [-1], near="shots", detach=True)
        with pytest.raises(croft.Usage):
            grid.submit(croft.task(verify="vote:3")(sum_of), grid.storage.file("shots/0"))
