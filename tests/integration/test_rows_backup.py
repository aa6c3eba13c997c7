"""Row E13 by real daemons: backups that are scheduled, deduplicated, pruned, verified, and restored on a new machine.

Also H2 for `croft backup`: what each command prints is what the Python API returns.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import pytest

import croft
from support import peers
from support.peers import RealPeer, two_lines, until
from support.trees import ODD_NAMES, make_tree, state_of

FILES, SIZE_MAX = 400, 60_000
DISK = {"lend.disk": "1G"}


@pytest.fixture(scope="module")
def village() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd", "dan"], settings=DISK)


def held_bytes(owner: RealPeer) -> int:
    """What all holders say that they hold for an owner."""
    return sum(holder.held_bytes or 0 for holder in owner.api.storage().holders)


def change(folder: Path, share: float) -> int:
    """Changes so many of the files, and grows the sparse one; how many files that are."""
    files = sorted(path for path in folder.glob("folder*/*") if path.is_file())
    random = Random(7)
    changed = random.sample(files, max(1, int(share * len(files))))
    for path in changed:
        data = bytearray(path.read_bytes() or b"x")
        data[random.randrange(len(data))] ^= 0xFF
        path.write_bytes(data)
    return len(changed)


def test_e13_a_machine_that_is_lost_is_restored_from_words_as_it_was(tmp_path: Path) -> None:
    """The drill: back up, change 1 %, send less than 5 %; wipe the machine; words; the same tree, and the older one."""
    with peers.homes() as base:
        ada, bob, *_ = peers.community(base, ["ada", "bob", "cyd", "dan"], settings=DISK)
        tree = tmp_path / "home"
        make_tree(tree, 1, FILES, SIZE_MAX)
        before = state_of(tree)
        ada.ok("backup", "add", str(tree), "--keep-last", "10")
        first = ada.json("backup", "run", "home")["run"]
        held_after_first = held_bytes(ada)
        changed = change(tree, 0.01)
        second = ada.json("backup", "run", "home")["run"]
        after = state_of(tree)

        assert (first["new"], second["changed"]) == (len(list_files(before)), changed)
        assert second["sent_bytes"] < 0.05 * first["sent_bytes"]
        assert held_bytes(ada) - held_after_first < 0.05 * held_after_first

        words = ada.ok("recovery", "show")
        ada.kill()
        shutil.rmtree(ada.home)
        shutil.rmtree(tree)
        back = peers.make(base, "again", settings=DISK)
        back.ok("recover", bob.json("invite", "--line-only")["line"], input=words)
        (found,) = back.json("backup", "list")["backups"]

        assert (found["name"], found["device"], found["is_own"], found["snapshots"]) == ("home", "ada", False, 2)
        back.ok("backup", "restore", "home", "--into", str(tmp_path / "new"))
        assert state_of(tmp_path / "new" / "home") == after
        back.ok("backup", "restore", "home@1", "--into", str(tmp_path / "old"))
        assert state_of(tmp_path / "old" / "home") == before
        assert "another device" in two_lines(back.croft("backup", "run", "home"))[0]
        back.ok("backup", "add", str(tmp_path / "old" / "home"), "--name", "old", "--to", "bob,cyd,dan")
        back.ok("backup", "run", "old")
        until(lambda: not is_up(back, "ada"), "the lost machine is known to be gone")
        assert "is not here" in two_lines(back.croft("backup", "adopt", "home"))[0]
        adopted = back.json("backup", "adopt", "home", str(tmp_path / "new" / "home"))["backup"]
        assert (adopted["is_own"], adopted["snapshots"], adopted["policy"]["last"]) == (True, 2, 10)
        third = back.json("backup", "run", "home")["run"]
        assert third["snapshot"] == 3 and third["sent_bytes"] < 0.05 * first["sent_bytes"]
        assert [one["name"] for one in back.json("backup", "list")["backups"]] == ["home", "old"]
        back.ok("backup", "rm", "old")
        back.ok("backup", "restore", "home@1", "--into", str(tmp_path / "again"))
        assert state_of(tmp_path / "again" / "home") == before
        assert back.json("backup", "verify", "home", "--read")["verified"]["damaged"] == []


def is_up(peer: RealPeer, name: str) -> bool:
    return any(one.name == name and one.link != "offline" for one in peer.api.peers())


def list_files(state: dict[bytes, tuple[object, ...]]) -> list[bytes]:
    return [path for path, (*_, data) in state.items() if isinstance(data, bytes) and not is_link(path)]


def is_link(path: bytes) -> bool:
    return path in (b"odd/link", b"odd/dangling")


async def by_the_asyncio_twin(peer: RealPeer, folder: Path) -> tuple[object, object]:
    async with await croft.connect_async(peer.home) as grid:
        await grid.backup.run("notes")
        await grid.backup.restore("notes", folder / "by-asyncio")
        assert (await grid.backup.verify("notes")).is_whole
        await grid.backup.prune("notes")
        return await grid.backup.list(), await grid.backup.snapshots("notes")


def test_e13_every_command_prints_what_the_python_api_returns(village: list[RealPeer], tmp_path: Path) -> None:
    """H2: `croft backup add`, `change`, `list`, `run`, `snapshots`, `verify`, `restore`, `prune`, `rm`."""
    ada, notes = village[0], tmp_path / "notes"
    make_tree(notes, 2, 10, 1_000)
    with ada.grid() as grid:

        def listed() -> object:
            return msgspec.to_builtins(grid.backup.list())

        added = ada.json("backup", "add", str(notes), "--to", "bob,cyd", "--keep", "copies=2", "--exclude", "*.tmp")
        assert added == {"schema": 1, "backup": listed()[0]}  # type: ignore[index]
        changed = ada.json("backup", "change", "notes", "--keep-last", "3", "--exclude", "*.bak")
        assert changed == {"schema": 1, "backup": listed()[0]}  # type: ignore[index]
        assert (changed["backup"]["to"], changed["backup"]["policy"]["last"]) == (["bob", "cyd"], 3)
        assert grid.backup.change("notes", every_s=3_600.0).every_s == 3_600.0
        assert grid.backup.change("notes", every_s=0.0).next_at is None
        run = ada.json("backup", "run", "notes")
        assert run["run"] == listed()[0]["last_run"]  # type: ignore[index]
        for command in (["backup"], ["backup", "list"]):
            assert ada.json(*command) == {"schema": 1, "backups": listed()}
        assert ada.json("backup", "snapshots", "notes") == {
            "schema": 1,
            "snapshots": msgspec.to_builtins(grid.backup.snapshots("notes")),
        }
        verified = msgspec.to_builtins(grid.backup.verify("notes", reads=True))
        assert ada.json("backup", "verify", "notes", "--read") == {"schema": 1, "verified": verified}
        restored = msgspec.to_builtins(grid.backup.restore("notes", tmp_path / "by-python"))
        assert ada.json("backup", "restore", "notes", "--into", str(tmp_path / "by-command"))["restored"] == restored
        assert state_of(tmp_path / "by-python/notes") == state_of(tmp_path / "by-command/notes") == state_of(notes)
        pruned = msgspec.to_builtins(grid.backup.prune("notes"))
        assert ada.json("backup", "prune", "notes") == {"schema": 1, "pruned": pruned | {"freed_bytes": 0}}
        assert asyncio.run(by_the_asyncio_twin(ada, tmp_path)) == (grid.backup.list(), grid.backup.snapshots("notes"))
        assert state_of(tmp_path / "by-asyncio/notes") == state_of(notes)
        assert ada.json("backup", "rm", "notes")["removed"]["name"] == "notes"
        assert grid.backup.list() == []


def test_e13_what_is_in_the_way_is_not_replaced_and_what_is_right_is_left(
    village: list[RealPeer], tmp_path: Path
) -> None:
    ada, letters, place = village[0], tmp_path / "letters", tmp_path / "place"
    make_tree(letters, 3, 20, 5_000)
    ada.ok("backup", "add", str(letters))
    ada.ok("backup", "run", "letters")
    ada.ok("backup", "restore", "letters", "letters/odd", "--into", str(place))
    whole = state_of(place / "odd")
    (place / "odd/program").write_bytes(b"mine")
    (place / "odd/one byte").unlink()

    error, hint = two_lines(ada.croft("backup", "restore", "letters", "letters/odd", "--into", str(place)))
    assert "is there already" in error and "--force" in hint
    assert (place / "odd/program").read_bytes() == b"mine" and not (place / "odd/one byte").exists()
    again = ada.json("backup", "restore", "letters", "letters/odd", "--into", str(place), "--force")["restored"]
    assert state_of(place / "odd") == whole and 0 < again["left"] < again["files"]
    odd = Path(os.fsdecode(os.path.join(os.fsencode(place / "odd"), ODD_NAMES[0])))
    odd.write_bytes(b"other")
    error, _ = two_lines(ada.croft("backup", "restore", "letters", "letters/odd", "--into", str(place)))
    assert "not text is there already" in error and odd.read_bytes() == b"other"
    assert (
        "no `letters/none`"
        in two_lines(ada.croft("backup", "restore", "letters", "letters/none", "--into", str(place)))[0]
    )
    assert "no snapshot 7" in two_lines(ada.croft("backup", "restore", "letters@7", "--into", str(place)))[0]
    ada.ok("backup", "rm", "letters")


def rewrite(folder: Path, share: float, random: Random) -> None:
    for path in folder.glob("folder*/*"):
        if random.random() < share:
            path.write_bytes(random.randbytes(300_000))


def is_busy(peer: RealPeer, running: subprocess.Popen[str]) -> bool:
    """Whether a run has begun; also if it is over already."""
    return peer.api.backups()[0].is_running or running.poll() is not None


def test_e13_a_daemon_that_is_killed_loses_no_snapshot_and_goes_on(village: list[RealPeer], tmp_path: Path) -> None:
    """SIGKILL at some moments of a run, and of pruning: what was restored before is restored, and the next run ends."""
    ada, films = village[0], tmp_path / "films"
    make_tree(films, 4, 60, 400_000)
    ada.ok("backup", "add", str(films), "--keep-last", "1")
    ada.ok("backup", "run", "films")
    before = state_of(films)
    random = Random(5)
    for moment_s in (0.02, 0.1, 0.25):
        rewrite(films, 1.0, random)
        running = ada.begin("backup", "run", "films")
        until(partial(is_busy, ada, running), "it runs")
        time.sleep(moment_s)  # any moment will do: this is when the power goes
        ada.kill()
        running.communicate()
        ada.start()
        until(lambda: {"bob", "cyd", "dan"} <= peers.linked(ada), "others are here")
        newest = ada.json("backup", "snapshots", "films")["snapshots"][-1]["number"]
        if newest == 1:
            ada.ok("backup", "restore", "films@1", "--into", str(tmp_path / f"after{moment_s}"))
            assert state_of(tmp_path / f"after{moment_s}" / "films") == before
    for moment_s in (0.15, 0.3):
        rewrite(films, 0.5, random)
        ada.ok("backup", "run", "films")
        pruning = ada.begin("backup", "prune", "films")
        time.sleep(moment_s)  # the command takes a moment to begin
        ada.kill()
        pruning.communicate()
        ada.start()
        until(lambda: {"bob", "cyd", "dan"} <= peers.linked(ada), "others are here")
    ada.ok("backup", "prune", "films")
    ada.ok("backup", "restore", "films", "--into", str(tmp_path / "last"))
    assert state_of(tmp_path / "last/films") == state_of(films)
    assert ada.json("backup", "verify", "films", "--read")["verified"]["damaged"] == []
    ada.ok("backup", "rm", "films")


def test_e13_a_backup_runs_by_itself_and_catches_up_after_a_restart(village: list[RealPeer], tmp_path: Path) -> None:
    ada, page = village[0], tmp_path / "page"
    page.write_text("one")
    ada.ok("backup", "add", str(page), "--every", "1d")
    until(lambda: ada.json("backup", "list")["backups"][0]["snapshots"] == 1, "it has run")
    (shown,) = ada.json("backup", "list")["backups"]
    assert shown["trouble"] == "" and 0.9 * 86_400 < shown["next_at"] - time.time() < 86_400
    page.unlink()
    error, hint = two_lines(ada.croft("backup", "run", "page"))
    assert "cannot back up" in error and "leave it out" in hint
    (shown,) = ada.json("backup", "list")["backups"]
    assert shown["snapshots"] == 1 and "cannot back up" in shown["trouble"]
    ada.ok("backup", "restore", "page", "--into", str(tmp_path / "back"))
    assert (tmp_path / "back/page").read_text() == "one"
    ada.ok("backup", "rm", "page")


def test_what_cannot_be_backed_up_is_said(village: list[RealPeer], tmp_path: Path) -> None:
    ada = village[0]
    (tmp_path / "a/x").mkdir(parents=True)
    (tmp_path / "b/x").mkdir(parents=True)
    cases = {
        (str(tmp_path / "none"),): "there is no file",
        (str(tmp_path / "a/x"), str(tmp_path / "b/x")): "two of these paths",
        (str(tmp_path / "a"), "--every", "1s"): "once a minute",
        (str(tmp_path / "a"), "--keep", "9of4"): "no layout",
        (str(tmp_path / "a"), "--to", "nobody"): "no peer is called",
        (str(tmp_path / "a"), "--to", "friends"): "nobody is here",
        (str(tmp_path / "a"), "--name", "a/b"): "cannot be called",
        (str(ada.home / "chunks"),): "keeps for itself",
    }
    for arguments, said in cases.items():
        assert said in two_lines(ada.croft("backup", "add", *arguments))[0], arguments
    assert ada.json("backup")["backups"] == []
    assert "no backup" in two_lines(ada.croft("backup", "change", "none", "--every", "1d"))[0]
    with ada.grid() as grid, pytest.raises(croft.NotFound):
        grid.backup.run("nothing")
    assert subprocess.run(ada.command("backup", "restore", "x@y", "--into", "z"), env=ada.variables()).returncode == 2
    assert os.listdir(tmp_path / "a") == ["x"]
