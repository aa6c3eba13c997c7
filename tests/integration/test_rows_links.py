"""The row of links to stored files, shown by real daemons: by commands and from Python.

A test's docstring names its row.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from croft.errors import Refused
from support import peers
from support.peers import RealPeer, two_lines, until


@pytest.fixture(scope="module")
def four() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        everybody = peers.community(base, ["ada", "bob", "cyd", "dan"])
        peers.await_links(everybody)
        yield everybody


def test_whom_a_link_lets_write_writes_while_its_owner_is_off_and_nobody_else_does(
    four: list[RealPeer], tmp_path: Path
) -> None:
    """E7: a write link: the writer's versions are read at once, and taken in by the owner, with the writer's name; a
    reader's write is refused; without a link, or after revocation, nothing is written or read."""
    ada, bob, cyd, dan = four
    page = tmp_path / "page"
    page.write_text("by ada")
    ada.ok("put", str(page), "--as", "site/page")
    ada.ok("put", str(page), "--as", "site/old")
    made = ada.json("link", "make", "site", "--to", "cyd", "--write", "bob", "--for", "1h")["link"]
    line = made["line"]
    assert (made["to"], made["writers"]) == (["cyd", "bob"], ["bob"])
    assert "bob (writes)" in ada.ok("link", "list")
    ada.stop()
    until(lambda: "ada" not in peers.linked(bob) | peers.linked(cyd), "all know that ada is away")

    page.write_text("by bob")
    others = ("--on", "cyd,dan", "--keep", "copies=2")
    assert "takes it in" in bob.croft("put", str(page), "--as", f"{line}/page", *others).stderr
    bob.ok("put", str(page), "--as", f"{line}/sub/", *others)
    bob.ok("rm", f"{line}/old")
    assert cyd.ok("get", f"{line}/page", "-") == "by bob"
    assert [file["name"] for file in cyd.json("ls", line)["files"]] == ["site/page", "site/sub/page"]
    cyd.ok("get", line, str(tmp_path / "site"))
    assert sorted(path.name for path in (tmp_path / "site").rglob("*")) == ["page", "page", "sub"]
    error, hint = two_lines(cyd.croft("put", str(page), "--as", f"{line}/page"))
    assert "lets you read, and not write" in error and "--write" in hint
    assert "does not let you" in two_lines(dan.croft("put", str(page), "--as", f"{line}/page"))[0]
    assert "not write" in two_lines(cyd.croft("rm", f"{line}/page"))[0]

    ada.start()
    until(lambda: ada.json("ls", "site/sub")["files"], "ada takes in what bob wrote")
    assert [file["name"] for file in ada.json("ls", "site")["files"]] == ["site/page", "site/sub/page"]
    assert ada.ok("get", "site/page", "-") == "by bob" and ada.ok("get", "site/page@1", "-") == "by ada"
    by = {version["number"]: version["device"] for version in ada.json("ls", "site/page")["files"][0]["versions"]}
    assert by == {1: "ada", 2: "bob"}

    ada.ok("link", "revoke", made["link"][:8])
    page.write_text("too late")
    for refused in (
        bob.croft("put", str(page), "--as", f"{line}/page"),
        bob.croft("get", line, str(tmp_path / "after")),
        cyd.croft("get", line, str(tmp_path / "after")),
    ):
        assert "revoked" in two_lines(refused)[0]
    assert ada.ok("get", "site/page", "-") == "by bob"


def test_whoever_verifies_finds_what_is_lost_and_reads_nothing(four: list[RealPeer], tmp_path: Path) -> None:
    """E7: a link to verify: all shares are proved, without a key; lost ones are made again by whom the owner lets."""
    ada, bob, _, dan = four
    film = tmp_path / "film"
    film.write_bytes(secrets.token_bytes(3_000_000))
    ada.ok("put", str(film), "--keep", "copies=2", "--on", "cyd,dan,bob")
    line = ada.json("link", "make", "film", "--to", "bob", "--verify", "--repair")["link"]["line"]

    assert "1 of 1 pieces have all their shares" in bob.croft("link", "verify", line, "--deep").stderr
    assert "lets you verify, and read nothing" in two_lines(bob.croft("get", line, "-"))[0]
    assert "does not let you" in two_lines(dan.croft("link", "verify", line))[0]
    with bob.grid() as grid:
        verified = grid.storage.verify_link(line, deep=True)
        assert (verified.stripes, verified.short, verified.faults) == (1, 0, [])
    assert "repairs" in ada.ok("link", "list")
    assert "neither reads nor writes" in two_lines(ada.croft("link", "make", "film", "--write", "bob", "--verify"))[0]


def test_links_are_made_written_and_revoked_from_python(four: list[RealPeer]) -> None:
    """E7, from Python: the line is a name for whom it is for."""
    ada, bob, cyd, _ = four
    with ada.grid() as at_ada, bob.grid() as at_bob, cyd.grid() as at_cyd:
        at_ada.storage.put(b"draft", "letter")
        link = at_ada.storage.link("letter", ["cyd"], write=["bob"], lifetime=3_600)
        at_bob.storage.put(b"written", link.line)
        assert at_cyd.storage.get(link.line) == b"written"
        until(lambda: at_ada.storage.get("letter") == b"written", "ada takes it in")
        with pytest.raises(Refused, match="not write"):
            at_cyd.storage.put(b"stolen", link.line)
        assert [one.link for one in at_ada.storage.links() if one.name == "letter"] == [link.link]
        assert at_ada.storage.revoke_link(link.link).is_revoked
        with pytest.raises(Refused, match="revoked"):
            at_bob.storage.put(b"late", link.line)


def test_shares_move_to_whoever_joined_and_files_come_back_as_they_were(four: list[RealPeer], tmp_path: Path) -> None:
    """E4, E14: `croft rebalance`: what it would move, what it moves, and that all of it is read afterwards."""
    ada = four[0]
    album = tmp_path / "album"
    album.mkdir()
    for number in range(8):
        (album / str(number)).write_bytes(secrets.token_bytes(600_000))
    ada.ok("put", str(album), "--keep", "copies=2")
    eve = peers.make(four[0].home.parent, "eve").start("--join", ada.json("invite", "--line-only")["line"])
    until(lambda: "eve" in {holder.name for holder in ada.api.storage().holders if holder.is_alive}, "eve lends disk")

    dry = ada.json("rebalance", "--dry-run")["rebalanced"]
    assert "eve" in {one["target"] for one in dry["left"]} and not dry["moved"]
    assert "Would move" in ada.croft("rebalance", "--dry-run").stderr
    with ada.grid() as grid:
        done = grid.storage.rebalance()
        assert done.moved and not done.left and not done.problems
        filled = {peer.name: peer for peer in done.peers}
        assert filled["eve"].before_bytes == 0 < filled["eve"].after_bytes
    assert "All shares lie where they belong" in ada.croft("rebalance").stderr
    for number in range(8):
        ada.ok("get", f"album/{number}", str(tmp_path / f"back{number}"))
        assert (tmp_path / f"back{number}").read_bytes() == (album / str(number)).read_bytes()
    eve.stop()
