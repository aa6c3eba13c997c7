"""Row A4: words on paper and one contact bring back who somebody is, and what is theirs."""

from __future__ import annotations

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


def test_wrong_words_are_refused_and_nothing_is_made_of_them(tmp_path: Path) -> None:
    stranger = RealPeer("stranger", tmp_path / "home")
    for words in ("", "abandon " * 24, "abandon " * 11, "nonsense " * 24):
        assert two_lines(stranger.croft("recover", input=words))
    assert not (stranger.home / "keys").exists()
