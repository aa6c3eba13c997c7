"""Row A4: words on paper and one contact bring back who somebody is, and what is theirs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import peers
from support.peers import RealPeer, two_lines


@pytest.fixture
def pair() -> Iterator[list[RealPeer]]:
    """Ada and Bob, two people in one community."""
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob"])


def test_a4_words_and_one_contact_bring_back_an_identity(pair: list[RealPeer]) -> None:
    ada, bob = pair
    twin = ada.json("status")["twin"]
    words = ada.ok("recovery", "show")
    assert "right" in ada.croft("recovery", "test", input=words).stderr
    ada.kill()
    shutil.rmtree(ada.home)

    back = peers.make(ada.home.parent, "again")
    invitation = bob.json("invite", "--line-only")["line"]
    assert back.croft("recover", invitation, input=words).returncode == 0

    assert back.json("status")["twin"] == twin
    assert back.ok("run", "--on", "bob", "--", "echo", "hello").strip() == "hello"
    assert two_lines(back.croft("recover", input=words)), "a home that is somebody's is left as it is"


def test_a4_files_and_contacts_come_back_too() -> None:
    with peers.homes() as base:
        ada, bob, *_ = peers.community(base, ["ada", "bob", "cyd", "dan"])
        files = {f"photos/{number}": os.urandom(40_000 * number) for number in range(8)}
        for name, data in files.items():
            path = base / "disk" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        ada.ok("put", "photos", cwd=base / "disk")
        ada.ok("contacts", "add", "bob", "robert")
        ada.ok("contacts", "trust", "cyd", "high")
        noted = ada.json("contacts")["contacts"]
        ada.ok("put", "photos/3", "--as", "last", cwd=base / "disk")
        words = ada.ok("recovery", "show")
        ada.kill()
        shutil.rmtree(ada.home)

        back = peers.make(base, "again")
        back.ok("recover", bob.json("invite", "--line-only")["line"], input=words)

        assert {file["name"] for file in back.json("ls")["files"]} == {*files, "last"}
        back.ok("get", "photos", str(base / "brought"))
        for name, data in files.items():
            assert (base / "brought" / name.removeprefix("photos/")).read_bytes() == data
        assert [(one["petname"], one["trust"]) for one in back.json("contacts")["contacts"]] == [
            (one["petname"], one["trust"]) for one in noted
        ]
        back.ok("put", "photos/5", "--as", "new", cwd=base / "disk")
        assert len(back.json("ls")["files"]) == len(files) + 2


def test_wrong_words_are_refused_and_nothing_is_made_of_them(tmp_path: Path) -> None:
    stranger = RealPeer("stranger", tmp_path / "home")
    for words in ("", "abandon " * 24, "abandon " * 11, "nonsense " * 24):
        assert two_lines(stranger.croft("recover", input=words))
    assert not (stranger.home / "keys").exists()
