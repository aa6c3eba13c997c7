"""The rows of twins and messages, shown by real daemons: who is away is written to, and reads it in order, once.

A test's docstring names its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import croft
from croft.control.schema import MessagesWanted
from support import peers
from support.peers import RealPeer, two_lines, until
from support.searching import in_memory, on_disk

GAUGE = """
from pathlib import Path

def measure(times: int) -> str:
    '''Measures so often.'''
    1 / times
    with Path(__file__).with_name("runs").open("a") as runs:
        runs.write(f"{times}\\n")
    return f"measured {times}"

def burn() -> str:
    return "burnt"

def open_gate(word: str) -> str:
    return f"open to {len(word)}"
"""
SECRET = "a very particular sentence that nobody else ever wrote"


@pytest.fixture(scope="module")
def village() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        made = peers.start(base, ["ada", "bo", "cyd"])
        for peer in made[1:]:
            peer.api.join(made[0].api.invite(is_spoken=False).line)
        peers.await_links(made)
        for peer in made:
            peer.ok("twin", "profile", f"I am {peer.name}")
        until(lambda: all(knows_all(peer, made) for peer in made), "cards of all")
        yield made


def knows_all(peer: RealPeer, everybody: list[RealPeer]) -> bool:
    return {one.profile for one in peer.api.twins()} == {f"I am {one.name}" for one in everybody}


def texts(peer: RealPeer, who: str = "", room: str = "") -> list[str]:
    return [one.text for one in peer.api.messages(MessagesWanted(who=who, room=room))]


def newest_at(peer: RealPeer) -> int:
    return max((one.number for one in peer.api.messages(MessagesWanted())), default=0)


def state_of_last(peer: RealPeer, who: str) -> str:
    state: str = peer.json("message", "list", who)["messages"][-1]["state"]
    return state


def kept_at(peer: RealPeer) -> int:
    return peer.api.twins()[0].kept_letters or 0


def test_a_message_waits_at_somebody_who_cannot_read_it(village: list[RealPeer]) -> None:
    """F6: B off, A posts, A off, B on: B has it from C, and C has no plaintext."""
    ada, bo, cyd = village
    bo.stop()
    ada.ok("message", "send", "bo", SECRET)
    until(lambda: kept_at(cyd) == 1, "cyd to keep it")
    ada.stop()
    bo.start()
    until(lambda: texts(bo, "ada") == [SECRET], "bo to read it")
    assert not on_disk(cyd, SECRET.encode()) and not in_memory(cyd, SECRET.encode())
    assert in_memory(bo, SECRET.encode()), "this search finds what is there"
    ada.start()
    peers.await_links(village)


def test_a_room_is_read_by_all_members_in_each_authors_order(village: list[RealPeer]) -> None:
    """F6: a room of the community, also for who was away."""
    ada, bo, cyd = village
    cyd.stop()
    for number in range(3):
        ada.ok("message", "send", "--room", "garden", f"ada {number}")
        bo.ok("message", "send", "--room", "garden", f"bo {number}")
    cyd.start()
    until(lambda: len(texts(cyd, room="garden")) == 6, "cyd to read the room")
    for author in ("ada", "bo"):
        assert [text for text in texts(cyd, room="garden") if text.startswith(author)] == [
            f"{author} {number}" for number in range(3)
        ]
    assert "garden" in cyd.ok("message", "rooms")
    peers.await_links(village)


def test_a_twin_is_there_while_its_owner_is_off(village: list[RealPeer]) -> None:
    """F1: delegates serve the profile and keep what is written; back again, each arrives once and in order."""
    ada, bo, cyd = village
    bo.ok("twin", "delegates", "cyd")
    until(lambda: ada.api.twin("bo").delegates == ["cyd"], "ada to hear of it")
    before = len(texts(bo))
    bo.kill()
    shown = json.loads(ada.ok("twin", "show", "bo", "--json"))
    assert (shown["profile"], shown["delegates"]) == ("I am bo", ["cyd"])
    expected = []
    kept = kept_at(cyd)
    for number in range(5):
        for peer in (ada, cyd):
            peer.ok("message", "send", "bo", f"{peer.name} {number}")
            expected.append(f"{peer.name} {number}")
    until(lambda: kept_at(cyd) == kept + 5, "cyd to keep them")
    ada.stop()
    bo.start()
    until(lambda: len(texts(bo)) >= before + 10, "bo to read them")
    bo.kill()
    bo.start()
    ada.start()
    peers.await_links(village)
    read = texts(bo)[before:]
    for author in ("ada", "cyd"):
        assert [text for text in read if text.startswith(author)] == [f"{author} {number}" for number in range(5)]
    assert sorted(read) == sorted(expected)
    until(
        lambda: json.loads(ada.ok("message", "list", "bo", "--json"))["messages"][-1]["state"] == "delivered", "a note"
    )


def test_calls_are_left_for_whom_is_away_and_run_once_when_they_are_back(
    village: list[RealPeer], tmp_path: Path
) -> None:
    """F1: while the owner is off, others take calls for them; back again, those that the rules allow run, each once."""
    ada, bo, cyd = village
    file = tmp_path / "gauge.py"
    file.write_text(GAUGE)
    for function, consent in (("measure", "auto"), ("burn", "deny"), ("open_gate", "ask")):
        bo.ok("offer", "capability", f"{file}:{function}", "--consent", consent)
    until(lambda: len(ada.api.capabilities()) == 3, "ada to know of them")
    before = kept_at(cyd)
    bo.kill()
    left = [ada.json("call", "measure", f"times={times}", "--later")["call"] for times in (2, 3)]
    denied = ada.json("call", "burn", "--later")["call"]
    asked = ada.json("call", "open_gate", f"word={SECRET[::-1]}", "--later")["call"]
    raised = ada.json("call", "measure", "times=0", "--later")["call"]
    until(lambda: kept_at(cyd) == before + 5, "cyd to keep them")
    assert not in_memory(cyd, SECRET[::-1].encode()), "who keeps a call cannot read it"
    ada.stop()
    bo.start()
    until(lambda: len(bo.json("consent", "queue")["queue"]) == 1, "the one that the owner is asked about")
    ada.start()
    assert [ada.ok("calls", call, "--wait", "30s").strip() for call in left] == ["measured 2", "measured 3"]
    assert "does not let you call `burn`" in two_lines(ada.croft("calls", denied, "--wait", "30s"))[0]
    assert "ZeroDivisionError" in two_lines(ada.croft("calls", raised, "--wait", "30s"))[0]
    assert ada.json("calls", asked)["state"] == "waiting"
    bo.ok("consent", "allow", str(bo.json("consent", "queue")["queue"][0]["number"]))
    assert ada.ok("calls", asked, "--wait", "30s").strip() == f"open to {len(SECRET)}"
    bo.kill()
    bo.start()
    peers.await_links(village)
    states = {one["call"]: one["state"] for one in ada.json("calls")["calls"]}
    assert states == {**dict.fromkeys([*left, asked], "done"), denied: "failed", raised: "failed"}
    assert (tmp_path / "runs").read_text().split() == ["2", "3"]


def test_programs_write_and_wait_for_answers(village: list[RealPeer]) -> None:
    """F6, from Python and in the terminal."""
    ada, bo, _ = village
    with croft.connect(ada.home) as grid:
        newest = newest_at(ada)
        after = str(newest_at(bo))
        waiting = bo.begin("message", "wait", "ada", "--once", "--after", after, "--for", "30s", "--json")
        [sent] = grid.messages.send("shall we meet?", to="bo")
        heard = json.loads(waiting.communicate(timeout=30)[0].splitlines()[-1])
        assert (heard["text"], heard["by"], heard["message"]) == ("shall we meet?", "ada", sent.message)
        bo.ok("message", "send", "ada", "at six", "--answer", sent.message[:8])
        answer = next(one for one in grid.messages.watch("bo", after=newest) if not one.is_own)
        assert (answer.text, answer.answers) == ("at six", sent.message)
    shown = ada.ok("message", "list", "bo", "-n", "1")
    assert "at six" in shown and "bo" in shown


def test_what_cannot_be_sent_is_said(village: list[RealPeer]) -> None:
    ada = village[0]
    for arguments, error in (
        (("message", "send", "nobody", "hello"), "no peer is called `nobody`"),
        (("message", "send", "bo"), "a message without text"),
        (("message", "send", "bo", "x" * (17 << 10)), "over 16 KiB"),
        (("message", "send", "--room", " ", "hello"), "cannot be the name of a room"),
        (("message", "send", "bo", "hello", "--answer", "ffff"), "no message `ffff`"),
        (("twin", "profile", "x" * 501), "at most 500"),
        (("twin", "delegates"), "name peers"),
        (("twin", "show", "nobody"), "no peer is called"),
    ):
        first, second = two_lines(ada.croft(*arguments))
        assert error in first and second, arguments
