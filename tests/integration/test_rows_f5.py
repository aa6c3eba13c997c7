"""Rows of the feature table about consent and the audit log, shown by real daemons. A docstring names its row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import croft
from croft.errors import Refused
from support import capable, peers
from support.peers import RealPeer, two_lines, until


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with peers.homes() as folder:
        yield folder


@pytest.fixture(scope="module")
def village(base: Path) -> list[RealPeer]:
    """Ada offers; bob, cyd and dan call."""
    ada, bob, cyd, dan = peers.community(base, ["ada", "bob", "cyd", "dan"])
    for function, options in (("add", ("--consent", "deny")), ("count", ()), ("note", ()), ("slow_note", ())):
        capable.offer(ada, base, function, *options)
    for peer in (bob, cyd, dan):
        until(lambda peer=peer: len(peer.api.capabilities()) == 4, f"{peer.name} knows what ada offers")
    return [ada, bob, cyd, dan]


def call(peer: RealPeer, *arguments: str) -> str:
    """What a call gives, or the error that it is refused with."""
    ended = peer.croft("call", *arguments)
    ended.stderr = "".join(
        line for line in ended.stderr.splitlines(True) if not line.startswith("Waiting for the owner")
    )
    return ended.stdout.strip() if ended.returncode == 0 else f"{ended.returncode}: {two_lines(ended)[0]}"


def acts(peer: RealPeer, *options: str) -> list[tuple[str, str, str, str]]:
    found = peer.json("audit", *options)["acts"]
    return [(one["who"], one["act"], one["on"], one["outcome"]) for one in found if one["act"] != "log"]


def test_four_rules_four_outcomes_and_each_is_in_the_log(village: list[RealPeer]) -> None:
    """F5: rule table → 4 outcomes; `ask` queue works; each in the audit log."""
    ada, bob, cyd, dan = village
    ada.ok("consent", "add", "--who", "bob", "--rule", "auto", "--per-day", "2")
    ada.ok("consent", "add", "--who", "cyd", "--rule", "ask")
    before = len(acts(ada))

    assert [call(bob, "add", "a=1") for _ in range(2)] == ["3", "3"]
    used_up = call(bob, "add", "a=1")
    assert used_up.startswith("5: ") and "2 calls a day are used up, by rule 1" in used_up
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(call, cyd, "add", "a=2", "--wait", "30s")
        question = until(ada.api.consent_queue, "ada is asked")[0]
        assert (question.capability, question.by, question.arguments) == ("add", "cyd", "a=2")
        ada.ok("consent", "allow", str(question.number))
        assert waiting.result() == "4"
        waiting = pool.submit(call, cyd, "add", "a=3", "--wait", "30s")
        question = until(ada.api.consent_queue, "ada is asked again")[0]
        ada.ok("consent", "refuse", str(question.number), "--always")
        assert "the owner was asked, and does not let you" in waiting.result()
    assert "rule 2 (add, this person: deny)" in call(cyd, "add", "a=3")
    assert "offered as deny" in call(dan, "add", "a=3")

    assert acts(ada)[before:] == [
        ("bob", "call", "add", "ok"),
        ("bob", "call", "add", "ok"),
        ("bob", "call", "add", "refused"),
        ("cyd", "call", "add", "ok"),
        ("cyd", "call", "add", "refused"),
        ("cyd", "call", "add", "refused"),
        ("dan", "call", "add", "refused"),
    ]
    assert acts(ada, "--who", "dan") == [("dan", "call", "add", "refused")]
    ada.ok("consent", "rm", "2")
    assert "offered as deny" in call(cyd, "add", "a=3")


def test_who_does_not_wait_for_the_owner_is_told_so(village: list[RealPeer]) -> None:
    """F5: a call that is to be asked about and does not wait, or not long enough, is refused; nothing stays behind."""
    ada, _, cyd, _ = village
    ada.ok("consent", "note", "--rule", "ask")

    assert "wants to be asked" in call(cyd, "note", "path=/nowhere", "--wait", "0s")
    assert "has not answered within 0.3 s" in call(cyd, "note", "path=/nowhere", "--wait", "0.3s")
    assert ada.json("consent", "queue")["queue"] == []


def test_consent_that_is_taken_back_ends_streams_and_not_single_calls(village: list[RealPeer], base: Path) -> None:
    """F5: consent changed while a call runs: it goes on; streams that are now denied end, new calls see the rule."""
    ada, _, _, dan = village
    trace = base / "slow"
    with dan.grid() as grid, ThreadPoolExecutor(1) as pool:
        running = pool.submit(grid.capability("slow_note"), str(trace), 1.0)
        until(trace.exists, "the call runs")
        ada.ok("consent", "slow_note", "--who", "dan", "--rule", "deny")
        assert running.result() == "ada"
        numbers = grid.capability("count")(1 << 40)
        assert next(numbers) == 0
        ada.ok("consent", "count", "--who", "dan", "--rule", "deny")
        with pytest.raises(Refused, match="ended the call"):
            for _ in numbers:
                pass
        with pytest.raises(Refused, match="has not run"):
            next(grid.capability("count")(3))


def test_ten_acts_are_ten_signed_lines_and_none_can_be_cut_silently(village: list[RealPeer], base: Path) -> None:
    """I7: 10 remote acts → 10 signed lines; cannot be cut silently."""
    ada, bob, cyd, dan = village
    before = len(acts(ada))
    with dan.grid() as grid:
        for _ in range(7):
            with pytest.raises(Refused):
                grid.capability("add")(1)
    bob.ok("run", "--on", "ada", "--", "true")
    with cyd.grid() as grid:
        assert list(grid.map(abs, [-1, -2], on="ada")) == [1, 2]
    ada.ok("expose", str(9), "--name", "nothing", "--to", "bob")
    bob.begin("tunnel", "ada:nothing").kill()

    until(lambda: len(acts(ada)) >= before + 9, "nine acts are written down")
    kinds = [(who, act) for who, act, _, _ in acts(ada)[before:]]
    assert kinds.count(("dan", "call")) == 7 and ("bob", "command") in kinds and ("cyd", "tasks") in kinds
    state = ada.json("audit", "--verify")
    assert state["findings"] == [] and state["lines"] >= before + 9
    ada.stop()
    with closing(sqlite3.connect(ada.files.database)) as db, db:
        last = db.execute("SELECT max(number) FROM audit_line").fetchone()[0]
        db.execute("DELETE FROM audit_line WHERE number IN (3, ?)", (last,))
        changed = "CAST(replace(CAST(text AS TEXT), '\"call\"', '\"cull\"') AS BLOB)"
        db.execute(f"UPDATE audit_line SET text = {changed} WHERE number = 2")
    ada.start()

    said: Any = ada.croft("audit", "--verify")
    assert said.returncode == 1
    assert f"line {last} is missing" in said.stderr and "line 2 was changed" in said.stderr
    assert "line 3 is missing" in said.stderr
    assert [one.code for one in ada.api.status().health] == ["audit.broken"]


def test_the_log_and_the_rules_outlive_a_restart(village: list[RealPeer]) -> None:
    """I7, F5: what was written down and decided is there after a restart, and the chain goes on."""
    ada, bob, _, _ = village
    rules, lines = ada.json("consent", "list")["rules"], len(ada.json("audit")["acts"])
    ada.kill()
    ada.start()
    peers.await_links([ada, bob])

    assert ada.json("consent", "list")["rules"] == rules
    assert len(ada.json("audit")["acts"]) >= lines
    assert until(lambda: "2 calls a day are used up" in call(bob, "add", "a=1"), "bob's calls of today are remembered")


def test_python_waits_for_consent(village: list[RealPeer]) -> None:
    """F5: the caller hears the outcome of what its provider's owner was asked."""
    ada, _, cyd, _ = village
    peers.await_links([ada, cyd])
    ada.ok("consent", "add", "--who", "cyd", "--rule", "ask")
    with cyd.grid() as grid, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(grid.capability("add", consent_s=30.0), 5)
        question = until(ada.api.consent_queue, "ada is asked")[0]
        ada.api.answer_question(question.number, is_allowed=True)
        assert answer.result() == 7
        assert isinstance(grid, croft.Grid)


def test_rules_go_by_roles_of_a_community(village: list[RealPeer], base: Path) -> None:
    """F5: what is for members is not for guests; what is offered to a guest by name is under the rule for guests."""
    ada, bob, _, dan = village
    capable.offer(ada, base, "pid", "--name", "desk", "--to", "dan", "--to", "bob")
    until(lambda: any(one.name == "desk" for one in dan.api.capabilities()), "dan knows of it")
    until(lambda: any(one.name == "desk" for one in bob.api.capabilities()), "bob knows of it")
    ada.ok("consent", "desk", "--who", "role:guest", "--rule", "deny")
    assert int(call(dan, "desk")) > 0

    ada.ok("community", "role", "dan", "guest")
    until(lambda: "role:guest: deny" in call(dan, "desk"), "dan is a guest, and refused")
    assert int(call(bob, "desk")) > 0
    ada.ok("community", "role", "dan", "member")
    until(lambda: not call(dan, "desk").startswith("5: "), "dan is a member again, and let in")
