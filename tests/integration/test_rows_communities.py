"""F3 and F7: communities that do not see each other, and one state without a server; shown with real daemons.

A test's docstring names its row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from namespaces import NamespaceHost, bridged

from support import peers
from support.peers import RealPeer, two_lines, until

CUT_S_MAX = 10.0
AGREE_S_MAX = 60.0


@pytest.fixture(scope="module")
def four() -> Iterator[list[RealPeer]]:
    """Ada founded the hill and the lake; bob and dan are on the hill, cyd at the lake."""
    with peers.homes() as base:
        ada, bob, cyd, dan = peers.start(base, ["ada", "bob", "cyd", "dan"])
        ada.ok("community", "new", "hill")
        ada.ok("community", "new", "lake")
        for other, name in ((bob, "hill"), (cyd, "lake"), (dan, "hill")):
            other.ok("join", ada.json("community", "invite", name, "--line-only")["line"])
        until(lambda: peers.linked(ada) == {"bob", "cyd", "dan"}, "ada is linked to all")
        peers.await_links([bob, dan])
        yield [ada, bob, cyd, dan]


def names(peer: RealPeer, community: str = "") -> dict[str, str]:
    """The members of a community as a peer has them, with their roles."""
    return {one.name: one.role for one in peer.api.community_members(community)}


# --- F3 --------------------------------------------------------------------------------------------------------------


def test_what_is_in_one_community_is_invisible_in_the_other(four: list[RealPeer], tmp_path: Path) -> None:
    """F3: peer in X and Y: X's offers invisible in Y, and so are its members, names, capabilities and services."""
    ada, bob, cyd, _ = four
    bob.ok("offer", "cpu=1", "--to", "ada", "--when", "mon-sun")
    bob.ok("expose", "8000", "--name", "wiki", "--to", "hill")
    (tmp_path / "tools.py").write_text("def double(number: int) -> int:\n    return 2 * number\n")
    bob.ok("offer", "capability", f"{tmp_path}/tools.py:double", "--to", "hill")
    until(lambda: "double" in ada.ok("capabilities"), "ada sees what bob offers")

    assert names(ada, "hill") == {"ada": "founder", "bob": "member", "dan": "member"} == names(bob)
    assert names(ada, "lake") == {"ada": "founder", "cyd": "member"} == names(cyd)
    assert [one.name for one in ada.api.communities()] == ["hill", "lake"]
    assert "which of your communities" in two_lines(ada.croft("invite"))[0]
    for told in ("peers", "capabilities", "offer list", "community log", "status", "find peers"):
        said = cyd.ok(*told.split())
        assert "bob" not in said and "hill" not in said and "double" not in said, told
    for asked in (("run", "--on", "bob", "--", "true"), ("tunnel", "bob:wiki"), ("net", "--measure", "bob")):
        assert "bob" in two_lines(cyd.croft(*asked))[0]
    twin = bob.json("init")["peer"]
    assert twin not in cyd.log()


def test_somebody_can_be_invited_as_a_guest(four: list[RealPeer]) -> None:
    """F3: an invitation for a guest makes nobody a member, not for a moment, and only who gives roles makes one."""
    ada, bob = four[0], four[1]
    with peers.homes() as base:
        [eve] = peers.start(base, ["eve"])
        eve.ok("join", ada.json("invite", "--guest", "--line-only", "--community", "hill")["line"])
        until(lambda: all(names(one, "hill").get("eve") == "guest" for one in (ada, bob, eve)), "all see a guest")
        acts = [(act.act, act.subject, act.value) for act in bob.api.community_log("hill", last=2)]
        assert acts == [("role", "eve", "guest"), ("admit", "eve", "eve")]
        assert "offers nothing to you" in two_lines(eve.croft("run", "--on", "ada", "--", "true"))[0]
        assert "guests invite nobody" in two_lines(eve.croft("invite"))[0]
        assert "may invite no guest" in two_lines(bob.croft("invite", "--guest", "--community", "hill"))[0]
        ada.ok("community", "remove", "eve", "--community", "hill")
        until(lambda: "eve" not in names(bob, "hill"), "she is gone")


def test_a_guest_uses_only_what_is_for_them_by_name(four: list[RealPeer]) -> None:
    """F3: roles: what is for members is not for guests."""
    ada, bob, _, _ = four
    assert bob.ok("run", "--on", "ada", "--", "echo", "hello") == "hello\n"
    ada.ok("community", "role", "bob", "guest", "--community", "hill")
    until(lambda: bob.api.communities()[0].role == "guest", "bob knows that he is a guest")

    assert "offers nothing to you" in two_lines(bob.croft("run", "--on", "ada", "--", "true"))[0]
    assert "guests invite nobody" in two_lines(bob.croft("invite"))[0]
    ada.ok("offer", "cpu=1", "mem=512M", "--to", "bob")
    assert bob.ok("run", "--on", "ada", "--", "echo", "hello") == "hello\n"

    ada.ok("offer", "withdraw", "1")
    ada.ok("community", "role", "bob", "member", "--community", "hill")
    until(lambda: bob.croft("run", "--on", "ada", "--", "true").returncode == 0, "bob is served again")


def test_whoever_is_removed_reads_nothing_new_and_the_others_go_on(four: list[RealPeer], tmp_path: Path) -> None:
    """F3: removed member cannot read new data; no restart."""
    ada, bob, cyd, dan = four
    page = tmp_path / "page"
    page.write_text("first")
    ada.ok("put", str(page), "--as", "page", "--keep", "copies=1", "--on", "dan")
    line = ada.ok("link", "make", "page", "--to", "hill").strip()
    bob.ok("get", line, str(tmp_path / "read"))
    assert (tmp_path / "read").read_text() == "first"
    processes = [peer.process for peer in four]
    began = time.monotonic()

    removed = ada.json("community", "remove", "bob", "--community", "hill")

    assert removed["name"] == "bob"
    until(lambda: (peers.linked(ada), peers.linked(dan)) == ({"cyd", "dan"}, {"ada"}), "bob is cut off", CUT_S_MAX)
    page.write_text("second")
    ada.ok("put", str(page), "--as", "page", "--keep", "copies=1", "--on", "dan")
    assert bob.croft("get", line, str(tmp_path / "again")).returncode != 0
    assert not (tmp_path / "again").exists()
    assert bob.croft("run", "--on", "ada", "--", "true").returncode != 0
    until(lambda: not bob.api.communities(), "bob is told, and out", 60)
    assert "You were removed from hill by its founder." in bob.ok("status") + bob.croft("status").stderr
    assert names(ada, "hill") == {"ada": "founder", "dan": "member"} == names(dan)
    assert cyd.ok("run", "--on", "ada", "--", "echo", "hello") == "hello\n"
    assert processes == [peer.process for peer in four]
    assert time.monotonic() - began < AGREE_S_MAX

    bob.ok("join", ada.json("community", "invite", "hill", "--line-only")["line"])
    everybody = {"ada": "founder", "bob": "member", "dan": "member"}
    until(lambda: names(ada, "hill") == everybody == names(bob) == names(dan), "bob is back")
    bob.ok("community", "leave", "hill")
    until(lambda: names(dan) == {"ada": "founder", "dan": "member"}, "bob has left")
    assert bob.api.communities() == [] and "left" in ada.ok("community", "log", "hill")


# --- F7 --------------------------------------------------------------------------------------------------------------


def test_writes_in_three_partitions_lead_to_one_state(tmp_path: Path) -> None:
    """F7: writes in 3 partitions: equal digests after heal; non-admin's write ignored by all."""
    assert tmp_path.exists()
    with bridged(6) as lab, peers.homes() as base:
        everybody = peers.community(base, ["ada", "bob", "cyd", "dan", "eve", "fay"], lab.hosts)
        ada, bob, cyd, dan, eve, fay = everybody
        for admin in ("bob", "cyd", "dan"):
            ada.ok("community", "role", admin, "admin")
        until(lambda: len({digest(peer) for peer in everybody}) == 1, "all agree")
        parts = [[0, 1], [2, 4], [3, 5]]
        for part in parts:
            for number in part:
                drop(lab[number], [lab[far].address for far in range(6) if far not in part])
        until(lambda: [peers.linked(peer) for peer in (ada, cyd, dan)] == [{"bob"}, {"eve"}, {"fay"}], "they split")

        ada.ok("community", "remove", "dan")
        bob.ok("community", "rules", "text=Be kind.")
        cyd.ok("community", "rules", "invite=admins")
        cyd.ok("community", "role", "eve", "admin")
        dan.ok("community", "rules", "invite=founders")
        assert "only the founder and admins may" in two_lines(fay.croft("community", "remove", "bob"))[0]
        dan.ok("community", "role", "fay", "admin")
        for number in range(6):
            lab[number].no_rules()

        stay = [ada, bob, cyd, eve, fay]
        until(lambda: len({digest(peer) for peer in stay}) == 1, "all agree again", AGREE_S_MAX)
        until(lambda: "says: you were removed from" in dan.croft("status").stderr, "dan is told", AGREE_S_MAX)
        roles = {"ada": "founder", "bob": "admin", "cyd": "admin", "eve": "admin", "fay": "member"}
        for peer in stay:
            until(lambda peer=peer: names(peer) == roles, f"{peer.name} has these members")  # type: ignore[misc]
            rules = peer.api.set_rules({})
            assert (rules.invite, rules.text) == ("admins", "Be kind.")
        void = [(act.author, act.act) for act in fay.api.community_log() if act.why_not and not act.is_refused]
        assert void == [("dan", "rule"), ("dan", "role")]


def digest(peer: RealPeer) -> str:
    """Of what a peer knows of its only community."""
    return peer.api.communities()[0].digest


def drop(host: NamespaceHost, addresses: Sequence[str]) -> None:
    """Nothing comes from these addresses any more."""
    listed = ", ".join(addresses)
    chain = f"type filter hook input priority 0\nip saddr {{ {listed} }} drop"
    host.rules(f"table ip split {{\nchain in {{\n{chain}\n}}\n}}\n")
