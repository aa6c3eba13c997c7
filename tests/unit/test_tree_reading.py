"""What a backup reads of the disk, names that it cannot read, and files that change under it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from croft.errors import Failed, Usage
from croft.node.tree_reading import FOLDER_DEPTH_MAX, NAMED_MAX, Batch, Counts, TreeReader, Wanted
from croft.storage.backup_formats import CHUNKS_LISTED_MAX, Blob, ChunkList, Kind, Listing, Node
from croft.storage.chunking import Chunker
from croft.storage.formats import decode_stored

CHUNKER = Chunker(bytes(32))
LONG_AGO_NS = 10**18


@dataclass
class Disk:
    """What a run handed over, as a store keeps it."""

    chunks: dict[bytes, bytes] = field(default_factory=dict)
    seen: dict[bytes, bytes] = field(default_factory=dict)

    def run(self, *paths: Path, exclude: tuple[str, ...] = (), never: tuple[Path, ...] = ()) -> tuple[Blob, Counts]:
        reader = TreeReader(CHUNKER, exclude, [os.fsencode(path) for path in never])
        steps = reader.read([os.fsencode(path) for path in paths])
        answer: Mapping[bytes, bytes] | None = None
        while True:
            try:
                step = next(steps) if answer is None else steps.send(answer)
            except StopIteration as end:
                return end.value, reader.counts
            answer = {}
            if isinstance(step, Wanted):
                answer = {path: self.seen[path] for path in step.folders if path in self.seen}
            else:
                self._take(step)

    def _take(self, batch: Batch) -> None:
        self.chunks.update((name, bytes(data)) for name, data, _ in batch.chunks)
        for gone in batch.forgotten:
            for path in [one for one in self.seen if one == gone or one.startswith(gone + b"/")]:
                del self.seen[path]
        self.seen.update(batch.seen)

    def bytes_of(self, blob: Blob) -> bytes:
        chunks = blob.chunks
        for _ in range(blob.depth):
            chunks = decode_stored(b"".join(self.chunks[one] for one in chunks), ChunkList).chunks
        return b"".join(self.chunks[one] for one in chunks)

    def nodes(self, tree: Blob, *names: bytes) -> dict[bytes, Node]:
        """What is in a folder of the tree."""
        found = {node.name: node for node in decode_stored(self.bytes_of(tree), Listing).nodes}
        if not names:
            return found
        below = found[names[0]].blob
        assert below is not None
        return self.nodes(below, *names[1:])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    # Files of tests are younger than what a run trusts; to it, all of them are old.
    monkeypatch.setattr("croft.node.tree_reading.RACY_NS", -LONG_AGO_NS)
    return Disk()


def test_an_unchanged_tree_is_not_read_and_is_the_same_tree(disk: Disk, tmp_path: Path) -> None:
    for number in range(3_000):
        path = tmp_path / f"d{number % 300}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number)
    first, counts = disk.run(tmp_path)
    again, recounts = disk.run(tmp_path)

    assert first == again and (counts.new, counts.read_bytes) == (3_000, sum(len(str(n)) for n in range(3_000)))
    assert (recounts.unchanged, recounts.new, recounts.changed, recounts.read_bytes) == (3_000, 0, 0, 0)


def test_what_is_no_more_is_forgotten_with_all_below(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/file").touch()
    (tmp_path / "a-b").mkdir()
    disk.run(tmp_path)
    (tmp_path / "a").rename(tmp_path / "z")
    disk.run(tmp_path)

    assert sorted(path for path in disk.seen if not path.endswith(b"/")) == sorted(
        os.fsencode(path)
        for path in (tmp_path, tmp_path / "a-b", *(tmp_path / "z" / name for name in ("", "b", "b/c")))
    )


def test_a_file_that_was_just_changed_is_read_again_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("croft.node.tree_reading.RACY_NS", LONG_AGO_NS)
    (tmp_path / "file").write_bytes(b"x")
    disk = Disk()
    disk.run(tmp_path)
    _, counts = disk.run(tmp_path)

    assert counts.read_bytes == 1


def test_a_large_file_comes_whole_and_its_long_list_of_chunks_is_stored_too(disk: Disk, tmp_path: Path) -> None:
    data = Random(1).randbytes(60 << 20)
    (tmp_path / "large").write_bytes(data)
    tree, _ = disk.run(tmp_path)
    blob = disk.nodes(tree, os.fsencode(tmp_path.name))[b"large"].blob

    assert blob is not None and blob.depth == 1 and len(blob.chunks) <= CHUNKS_LISTED_MAX
    assert disk.bytes_of(blob) == data


def test_holes_are_not_read(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"a" * 200_000)
        file.seek(1 << 30)
        file.write(b"b" * 200_000)
        file.truncate(2 << 30)
    tree, counts = disk.run(tmp_path)
    node = disk.nodes(tree, os.fsencode(tmp_path.name))[b"sparse"]

    assert node.size == 2 << 30 and counts.read_bytes < 1 << 20 and node.blob is not None
    data = disk.bytes_of(node.blob).rstrip(b"\0")
    assert data.startswith(b"a" * 200_000) and data.endswith(b"\0" + b"b" * 200_000)


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(NAMED_MAX + 20):
        (tmp_path / f"secret{number}").write_bytes(b"x")
    (tmp_path / "fine").write_bytes(b"y")
    open_file = os.open

    def refuse(path: bytes, *how: int) -> int:
        if b"secret" in os.path.basename(path):
            raise PermissionError(13, "Permission denied")
        return open_file(path, *how)

    monkeypatch.setattr(os, "open", refuse)
    tree, counts = disk.run(tmp_path)

    assert list(disk.nodes(tree, os.fsencode(tmp_path.name))) == [b"fine"]
    assert counts.unreadable == NAMED_MAX + 20 and len(counts.named_unreadable) == NAMED_MAX
    assert counts.named_unreadable[0].endswith("secret0: Permission denied")


def test_a_file_that_changes_while_it_is_read_is_read_again_and_then_marked(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"once": 1, "always": 9}
    for name in names:
        (tmp_path / name).write_bytes(b"begun")
    pread = os.pread

    def disturbed(descriptor: int, size: int, offset: int) -> bytes:
        data = pread(descriptor, size, offset)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        name = os.path.basename(path)
        if data and names.get(name, 0):
            names[name] -= 1
            with open(path, "ab") as file:
                file.write(b" more")
        return data

    monkeypatch.setattr(os, "pread", disturbed)
    tree, counts = disk.run(tmp_path)
    found = disk.nodes(tree, os.fsencode(tmp_path.name))

    once, always = found[b"once"], found[b"always"]
    assert once.blob is not None and disk.bytes_of(once.blob) == b"begun more" and not once.is_torn
    assert always.is_torn and (counts.torn, counts.named_torn) == (1, [str(tmp_path / "always")])
    names.clear()
    tree, counts = disk.run(tmp_path)
    assert (counts.torn, counts.changed + counts.new) == (0, 2), "what changed under it is read again next time"


def test_what_is_excluded_is_left_out_and_so_is_the_peers_own_home(disk: Disk, tmp_path: Path) -> None:
    for name in ("keep/a.txt", "keep/a.tmp", "cache/x", "own/keys", "keep/deep/cache"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    exclude = ("*.tmp", f"{tmp_path}/cache")
    tree, counts = disk.run(tmp_path, exclude=exclude, never=(tmp_path / "own",))
    top = os.fsencode(tmp_path.name)

    assert list(disk.nodes(tree, top)) == [b"keep"]
    assert list(disk.nodes(tree, top, b"keep")) == [b"a.txt", b"deep"]
    assert list(disk.nodes(tree, top, b"keep", b"deep")) == [b"cache"] and counts.files == 2


def test_one_file_with_several_names_is_read_once(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1_000)
    os.link(tmp_path / "a", tmp_path / "b")
    tree, counts = disk.run(tmp_path)
    found = disk.nodes(tree, os.fsencode(tmp_path.name))

    assert counts.read_bytes == 1_000 and found[b"a"].link == found[b"b"].link is not None
    assert found[b"a"].blob == found[b"b"].blob


def test_folders_too_deep_are_named(disk: Disk, tmp_path: Path) -> None:
    place = tmp_path
    for _ in range(FOLDER_DEPTH_MAX + 5):
        place = place / "d"
    place.mkdir(parents=True)
    _, counts = disk.run(tmp_path)

    assert counts.unreadable == 1 and "folders deep" in counts.named_unreadable[0]


def test_a_path_that_is_not_there_fails_the_run(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="cannot back up"):
        disk.run(tmp_path / "unmounted")


def test_what_the_peer_keeps_for_itself_is_refused(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "own/keys").mkdir(parents=True)
    for path in ("own", "own/keys"):
        with pytest.raises(Usage, match="keeps for itself"):
            disk.run(tmp_path / path, never=(tmp_path / "own",))


def test_a_socket_is_no_use_to_anybody_later(disk: Disk, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        tree, counts = disk.run(tmp_path)

    assert disk.nodes(tree, os.fsencode(tmp_path.name)) == {} and counts.unreadable == 0


def test_a_path_that_is_a_link_is_what_it_leads_to(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").touch()
    (tmp_path / "link").symlink_to("real")
    tree, _ = disk.run(tmp_path / "link")

    assert disk.nodes(tree)[b"link"].kind == Kind.FOLDER
    assert list(disk.nodes(tree, b"link")) == [b"file"]
