"""The owner decides when this machine lends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import croft
from support import peers
from support.peers import RealPeer, two_lines, until

TASKS = 60


@pytest.fixture
def pair() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob"])


def doze(number: int) -> int:
    time.sleep(0.1)
    return number


def test_a_pause_sends_tasks_elsewhere_is_told_and_outlives_a_restart(pair: list[RealPeer]) -> None:
    """H8: midway through a job its lender pauses: the job ends elsewhere, each task once; `resume` brings it back."""
    ada, bob = pair
    with ada.grid() as grid:
        mapped = grid.map(doze, range(TASKS))
        results = [next(mapped)]
        until(lambda: "bob" in mapped.done_by, "bob works")
        bob.ok("pause", "--for", "2h")
        done_before = mapped.done_by["bob"]
        results += list(mapped)

        assert results == list(range(TASKS))
        assert mapped.done_by["ada"] >= TASKS - done_before - 8, "what was on its way may still have counted"
        bob.stop()
        bob.start()
        peers.await_links(pair)
        with pytest.raises(croft.Refused, match=r"lending is paused|lends no processors now"):
            list(grid.map(abs, [1], on=["bob"]))
        refused = ada.croft("run", "--on", "bob", "--", "true")
        status = bob.json("status")["lending"]
        resumed = bob.json("resume")
        until(lambda: any(peer.name == "bob" and peer.slots for peer in ada.api.peers()), "ada hears that bob lends")
        assert list(grid.map(abs, [-1], on=["bob"])) == [1]

    two_lines(refused)
    assert status["slots_now"] == 0 and status["reason"] == "lending is paused"
    assert 0 < status["paused_until"] - time.time() <= 7200
    assert resumed["slots_now"] == resumed["slots"] == 2 and resumed["paused_until"] is None


def test_a_command_that_runs_goes_on_while_lending_is_paused(pair: list[RealPeer]) -> None:
    ada, bob = pair
    running = ada.begin("run", "--on", "bob", "--", "sh", "-c", "echo begun; sleep 3; echo ended")
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"

    bob.ok("pause")

    said, _ = running.communicate(timeout=30)
    assert said == "ended\n" and running.returncode == 0
    assert bob.json("status")["lending"]["paused_until"] == 0, "without end"


def test_outside_the_hours_set_nothing_is_lent(pair: list[RealPeer]) -> None:
    """H8: `lend.when` that leaves out this hour lends nothing, and says so; one that has it in lends all."""
    _, bob = pair
    hour = time.localtime().tm_hour
    lent = []
    for first, last in ((hour + 2, hour + 3), (hour, hour + 2)):
        bob.stop()
        bob.start("--set", f"lend.when={first % 24:02}-{last % 24:02}")
        lent.append(bob.json("status")["lending"])

    assert lent[0]["slots_now"] == 0 and "lent only at" in lent[0]["reason"]
    assert lent[1]["slots_now"] == lent[1]["slots"] == 2
