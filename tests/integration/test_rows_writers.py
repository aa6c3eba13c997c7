"""The row of two writers, shown by real daemons: two devices of one owner put one file apart, and nothing is lost.

A test's docstring names its row.
"""

from __future__ import annotations

from pathlib import Path

from support import peers
from support.peers import RealPeer, until


def hears_of(peer: RealPeer, others: list[RealPeer]) -> None:
    until(lambda: {other.name for other in others} <= peers.linked(peer), f"{peer.name} is linked to all")


def test_two_devices_that_wrote_apart_keep_both_versions_and_say_so(tmp_path: Path) -> None:
    """E6: two writers: both versions are kept, the conflict is shown, and the next put settles it."""
    with peers.homes() as base:
        desk, bob, cyd = peers.community(base, ["desk", "bob", "cyd"])
        train = peers.make(base, "train").start("--join", desk.json("device", "add")["line"])
        hears_of(train, [desk, bob, cyd])
        letter = tmp_path / "letter"
        letter.write_text("draft")
        desk.ok("put", str(letter), "--on", "bob,cyd", "--keep", "copies=2")
        assert train.ok("get", "letter", "-") == "draft"

        train.stop()
        letter.write_text("from the desk")
        desk.ok("put", str(letter), "--on", "bob", "--keep", "copies=1")
        desk.stop()
        bob.stop()
        train.start()
        hears_of(train, [cyd])
        letter.write_text("from the train")
        train.ok("put", str(letter), "--on", "cyd", "--keep", "copies=1")
        bob.start()
        desk.start()
        for peer in (desk, train):
            hears_of(peer, [bob, cyd])

        for peer in (desk, train):
            until(lambda peer=peer: peer.json("ls")["files"][0]["is_conflict"], f"{peer.name} sees both")  # type: ignore[misc]
            assert peer.ok("get", "letter", "-", "--by", "desk") == "from the desk"
            assert peer.ok("get", "letter", "-", "--by", "train") == "from the train"
        assert "put by" in desk.croft("ls").stderr
        letter.write_text("agreed")
        desk.ok("put", str(letter), "--on", "bob,cyd", "--keep", "copies=2")
        until(lambda: train.ok("get", "letter", "-") == "agreed", "the other device reads what settles it")
        assert not train.json("ls")["files"][0]["is_conflict"]
