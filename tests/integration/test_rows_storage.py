"""The rows of storage, shown by real daemons: files come back as they were, from whom the owner lets hold them.

A test's docstring names its row.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import croft
from croft.control.schema import FilesWanted
from support import peers
from support.peers import RealPeer, two_lines, until
from support.searching import in_memory, on_disk

FILM_BYTES, SHORT_BYTES = 40 << 20, 9_000_000
MARK = b"a very particular sentence that nobody else ever wrote"


@pytest.fixture(scope="module")
def village() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        small = peers.make(base, "tom", settings={"lend.disk": "24M"})
        made = peers.start(base, ["ada", "bob", "cyd", "dan"])
        small.start()
        everybody = [*made, small]
        for peer in everybody[1:]:
            peer.api.join(made[0].api.invite(is_spoken=False).line)
        peers.await_links(everybody)
        yield everybody


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film"
    path.write_bytes(secrets.token_bytes(FILM_BYTES))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored_files(peer: RealPeer) -> list[Path]:
    """The files in which it keeps what is others'."""
    return sorted(path for path in peer.files.chunks.rglob("*") if path.is_file())


def chunk_bytes(peer: RealPeer) -> int:
    """What these take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in stored_files(peer))


def shares_at(owner: RealPeer) -> dict[str, int]:
    """How many shares each holder says it has."""
    return {holder.name: holder.shares for holder in owner.api.storage().holders if holder.shares is not None}


def test_a_file_comes_back_as_it_was_though_a_holder_changed_a_byte(
    village: list[RealPeer], film: Path, tmp_path: Path
) -> None:
    """E1: what is read is checked; a share with a flipped byte is refused, its holder named, another one asked."""
    ada, bob, cyd, dan = village[:4]
    put = ada.json("put", str(film), "--on", "bob,cyd,dan", "--keep", "2of3")["put"]
    assert put["layout"] == "2of3" and set(put["holders"]) == {"bob", "cyd", "dan"}
    ada.ok("get", "film", str(tmp_path / "first"))
    assert digest(tmp_path / "first") == digest(film)

    for path in stored_files(bob):
        with path.open("r+b") as file:
            for at in range(1 << 19, path.stat().st_size, 1 << 20):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1]))
    read = ada.json("get", "film", str(tmp_path / "second"))["get"]

    assert digest(tmp_path / "second") == digest(film)
    assert read["faults"] and all(fault.startswith("bob: ") for fault in read["faults"])
    assert {cyd.name, dan.name}.isdisjoint(fault.split(":")[0] for fault in read["faults"])


def test_holders_see_neither_what_is_stored_nor_its_name(village: list[RealPeer], tmp_path: Path) -> None:
    """E2: neither on a holder's disk nor in its memory is there a word of what it holds."""
    ada, bob = village[:2]
    folder = tmp_path / "diary-of-a-summer"
    folder.mkdir()
    (folder / "monday.txt").write_bytes(MARK * 20)
    (folder / "long.txt").write_bytes(MARK * 20_000)
    ada.ok("put", str(folder), "--on", "bob", "--keep", "copies=1")
    assert ada.ok("get", "diary-of-a-summer/monday.txt", "-").encode() == MARK * 20

    ada.ok("get", "diary-of-a-summer", str(tmp_path / "again"))
    for word in (MARK, b"diary-of-a-summer", b"monday.txt"):
        assert not on_disk(bob, word) and not in_memory(bob, word)
    assert in_memory(ada, b"diary-of-a-summer"), "this search finds what is there"


def test_only_peers_that_the_owner_lets_hold_anything(village: list[RealPeer], film: Path) -> None:
    """E3: with --on two of them hold shares, and the others have not one byte more than before."""
    ada, _, cyd, dan, tom = village
    before = {peer.name: (chunk_bytes(peer), count) for peer in (cyd, dan) for count in [shares_at(ada)[peer.name]]}
    put = ada.json("put", str(film), "--as", "for-bob-and-tom", "--on", "bob,tom", "--never", "dan", "--keep", "2of2")[
        "put"
    ]

    assert set(put["holders"]) == {"bob", "tom"} and put["losses"] == 0
    assert {peer.name: (chunk_bytes(peer), shares_at(ada)[peer.name]) for peer in (cyd, dan)} == before
    error, hint = two_lines(ada.croft("put", str(film), "--never", "dan", "--keep", "4of4"))
    assert "needs 4 owners who lend disk, and 3 do now" in error and "--keep" in hint
    ada.ok("rm", "for-bob-and-tom", "--final")
    assert stored_files(tom)


def test_a_put_beyond_what_is_lent_is_refused_and_what_was_removed_is_free_again(
    village: list[RealPeer], tmp_path: Path
) -> None:
    """E14: an offer is not exceeded, the reason is told; removed files give their room back, others stay."""
    ada, tom = village[0], village[4]
    kept, large = tmp_path / "kept", tmp_path / "large"
    kept.write_bytes(secrets.token_bytes(9 << 20))
    large.write_bytes(secrets.token_bytes(20 << 20))
    only_tom = ["--on", "tom", "--keep", "copies=1"]
    ada.ok("put", str(kept), *only_tom)

    error, hint = two_lines(ada.croft("put", str(large), *only_tom))
    assert "tom: " in error and "of disk" in error and "--on" in hint
    assert ada.croft("put", str(large), *only_tom).returncode == 5
    assert ada.api.files(FilesWanted(name="large")) == []
    (lease,) = [lease for lease in tom.api.leases() if lease.purpose == "storage" and lease.stage == "held"]
    assert lease.holder == "ada" and lease.amounts["disk"] <= 24 << 20

    ada.ok("storage", "--collect")
    held = chunk_bytes(tom)
    assert 9 << 20 <= held < 14 << 20, "nothing of what was refused is left"
    ada.ok("put", str(tmp_path / "kept"), "--as", "second", *only_tom)
    freed = ada.json("rm", "second", "--final")["removed"]["freed_bytes"]
    assert freed >= 9 << 20 and chunk_bytes(tom) < held + (2 << 20)
    ada.ok("get", "kept", str(tmp_path / "again"))
    assert digest(tmp_path / "again") == digest(kept)


def test_pipes_folders_versions_and_python_programs_all_see_the_same_files(
    village: list[RealPeer], tmp_path: Path
) -> None:
    """E6 in part: names, versions, stdin and stdout, and the Python API."""
    ada = village[0]
    folder = tmp_path / "letters"
    (folder / "old").mkdir(parents=True)
    files = {f"letters/{number}": secrets.token_bytes(300 * number) for number in range(60)}
    files["letters/old/long"] = secrets.token_bytes(700_000)
    files["letters/empty"] = b""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.chmod(tmp_path / "letters/3", 0o640)
    ada.ok("put", str(folder))
    first = subprocess.run(ada.command("put", "-", "--as", "piped"), input=b"one", env=ada.variables(), check=True)
    subprocess.run(ada.command("put", "-", "--as", "piped"), input=b"two" * 500_000, env=ada.variables(), check=True)

    assert first.returncode == 0
    ada.ok("get", "letters", str(tmp_path / "back"))
    read = {f"letters/{path.relative_to(tmp_path / 'back')}": path for path in (tmp_path / "back").rglob("*")}
    assert {name: path.read_bytes() for name, path in read.items() if path.is_file()} == files
    assert (tmp_path / "back/3").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "back/3").stat().st_mtime_ns == (tmp_path / "letters/3").stat().st_mtime_ns
    assert ada.ok("get", "piped@1", "-") == "one"
    assert "is there already" in two_lines(ada.croft("get", "piped", str(tmp_path / "back/3")))[0]
    ada.ok("rm", "letters", "-r")
    assert ada.ok("ls", "letters").count("\n") == 1
    ada.ok("get", "letters/7@1", str(tmp_path / "seven"))
    assert (tmp_path / "seven").read_bytes() == files["letters/7"]

    with ada.grid() as grid:
        assert grid.storage.get("piped") == b"two" * 500_000
        with grid.storage.open("piped") as file:
            file.seek(-4, os.SEEK_END)
            assert file.read() == b"otwo"
        with grid.storage.open("notes/today", "wb", keep="copies=2") as file:
            file.write(b"written ")
            file.write(b"by a program")
        assert grid.storage.get("notes/today") == b"written by a program"
        assert [one.name for one in grid.storage.ls("notes")] == ["notes/today"]
        with pytest.raises(croft.NotFound):
            grid.storage.get("nothing")


def test_reads_go_on_when_as_many_holders_are_killed_as_the_layout_bears(
    village: list[RealPeer], tmp_path: Path
) -> None:
    """E4, first half: two of four holders are killed; the third one that dies is one too many, and that is said."""
    ada, _, cyd, dan, tom = village
    film = tmp_path / "film"
    film.write_bytes(secrets.token_bytes(SHORT_BYTES))
    put = ada.json("put", str(film), "--as", "spread", "--keep", "2of4")["put"]
    assert (put["losses"], put["missing"]) == (2, 0) and len(put["holders"]) == 4
    cyd.kill()
    dan.kill()

    ada.ok("get", "spread", str(tmp_path / "spread"))
    assert digest(tmp_path / "spread") == digest(film)

    tom.kill()
    error, hint = two_lines(ada.croft("get", "spread", str(tmp_path / "not-there")))
    assert "only 1 of the 2 shares" in error and "back" in hint
    assert not (tmp_path / "not-there").exists()
    for peer in (cyd, dan, tom):
        peer.start()
    until(lambda: {"cyd", "dan", "tom"} <= peers.linked(ada), "they are back")
    ada.ok("get", "spread", str(tmp_path / "again"))
    assert digest(tmp_path / "again") == digest(film)


def test_a_holder_that_has_lost_what_it_says_it_holds_is_found_out_and_made_up_for(
    village: list[RealPeer], tmp_path: Path
) -> None:
    """E5: a holder deletes and claims: caught in one round, repaired, its score falls."""
    ada, bob = village[:2]
    for file in ada.api.files(FilesWanted(name="diary-of-a-summer")):
        ada.ok("rm", file.name, "--final")  # bob has the only copy of it
    picture = tmp_path / "picture"
    picture.write_bytes(secrets.token_bytes(SHORT_BYTES))
    ada.ok("put", str(picture), "--on", "bob,cyd", "--keep", "copies=2")
    ada.ok("put", str(tmp_path / "picture"), "--as", "again", "--never", "tom", "--keep", "copies=2")
    for path in stored_files(bob):
        if path.stat().st_size > 1 << 20 and not path.name.startswith("index."):
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))

    state = ada.json("storage", "--check")["storage"]
    (told,) = [holder for holder in state["holders"] if holder["name"] == "bob"]
    assert told["failed"] > 0 and any(fault.startswith("bob: ") for fault in state["faults"])
    until(lambda: ada.json("storage", "--check")["storage"]["short"] == 0, "all shares are made again")
    assert ada.json("storage")["storage"]["rebuilt"] > 0
    assert ada.json("ls", "--at-risk")["files"] == []
    ada.ok("get", "picture", str(tmp_path / "back"))
    assert digest(tmp_path / "back") == digest(picture)


def test_earlier_versions_and_states_come_back(village: list[RealPeer], tmp_path: Path) -> None:
    """E6: three versions, get @2, rollback; a snapshot shows a removed file."""
    ada, letter = village[0], tmp_path / "letter"
    for text in ("one", "two", "three"):
        letter.write_text(text)
        ada.ok("put", str(letter), "--as", "post/letter", "--on", "cyd,dan", "--keep", "copies=2")

    assert ada.ok("get", "post/letter@2", "-") == "two"
    assert ada.json("rollback", "post/letter@2")["file"]["versions"][-1]["number"] == 4
    assert ada.ok("get", "post/letter", "-") == "two"
    files = len(ada.json("ls")["files"])
    ada.ok("snapshot", "take", "first")
    ada.ok("snapshot", "take", "today")
    ada.ok("rm", "post/letter", "--final")
    ada.ok("storage", "--collect")

    assert "there is no file" in two_lines(ada.croft("get", "post/letter", "-"))[0]
    assert ada.ok("get", "post/letter", "-", "--at", "today") == "two"
    taken = {one["name"]: one["files"] for one in ada.json("snapshot", "list")["snapshots"]}
    assert taken == {"first": files, "today": files}
    for name in taken:
        ada.ok("snapshot", "rm", name)
    assert "there is no snapshot" in two_lines(ada.croft("ls", "--at", "today"))[0]
    assert "which version" in two_lines(ada.croft("rollback", "post/letter"))[0]


def test_a_link_is_of_use_to_whom_it_names_until_it_is_revoked(village: list[RealPeer], tmp_path: Path) -> None:
    """E7: the named reader reads, also what changes later; others are refused; after revocation nothing new is read."""
    ada, bob, cyd = village[:3]
    page = tmp_path / "page"
    page.write_text("first")
    ada.ok("put", str(page), "--as", "site/page", "--keep", "copies=2")
    line = ada.ok("link", "make", "site", "--to", "bob", "--for", "1h").strip()

    bob.ok("get", line, str(tmp_path / "site"))
    assert (tmp_path / "site/page").read_text() == "first"
    error, hint = two_lines(cyd.croft("get", line, str(tmp_path / "stolen")))
    assert "does not let you" in error and "link of your own" in hint and not (tmp_path / "stolen").exists()
    assert "no link" in two_lines(bob.croft("get", line[:-7], str(tmp_path / "cut")))[0]
    page.write_text("second")
    ada.ok("put", str(page), "--as", "site/page", "--keep", "copies=2")
    (tmp_path / "later").mkdir()
    until(lambda: read_again(bob, line, tmp_path / "later") == "second", "the link leads to the new version")

    (link,) = ada.json("link", "list")["links"]
    assert link["to"] == ["bob"] and not link["is_revoked"]
    ada.ok("link", "revoke", link["link"][:8])
    page.write_text("third")
    ada.ok("put", str(page), "--as", "site/page", "--keep", "copies=2")
    error, _ = two_lines(bob.croft("get", line, str(tmp_path / "third")))
    assert "revoked" in error


def read_again(reader: RealPeer, line: str, place: Path) -> str:
    """What the one page behind a link says now."""
    reader.ok("get", line, str(place / secrets.token_hex(4)))
    return max((path for path in place.rglob("page")), key=lambda path: path.stat().st_ctime_ns).read_text()
