"""The rows of the feature list on lending: offers, leases, devices, and the owner's own work first."""

from __future__ import annotations

import subprocess
from typing import Any

from support import peers
from support.peers import RealPeer, two_lines, until

RACERS = 10


def held(lender: RealPeer) -> list[dict[str, Any]]:
    """The leases that somebody has of a peer now."""
    return [lease for lease in lender.json("leases")["leases"] if lease["ended_at"] is None]


def ended(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    said, complained = running.communicate(timeout=60)
    return subprocess.CompletedProcess(running.args, running.returncode, said, complained)


def test_g2_ten_race_for_the_last_processors_and_the_lease_outlives_the_lenders_death() -> None:
    """G2: of ten peers one gets the last two processors, nine are told `full`; the lease survives SIGKILL."""
    with peers.homes() as base:
        lender, *racers = peers.community(base, ["lender", *(f"racer{number}" for number in range(RACERS))])
        command = ("run", "--on", "lender", "--cpu", "2", "--wait", "0", "--", "sh", "-c", "sleep 6")
        running = [racer.begin(*command) for racer in racers]
        until(lambda: sum(one.poll() is None for one in running) == 1 and held(lender), "one of them has won", 60)
        losers = [ended(one) for one in running if one.poll() is not None]
        winner = next(number for number, one in enumerate(running) if one.poll() is None)
        (lease,) = held(lender)

        assert len(losers) == RACERS - 1 and {loser.returncode for loser in losers} == {125}
        for loser in losers:
            error, hint = two_lines(loser)
            assert "lender is full: 2 of 2 processors taken" in error and hint
        assert (lease["holder"], lease["amounts"]["cpu"]) == (f"racer{winner}", 2)

        lender.kill()
        lender.start()
        (kept,) = held(lender)
        assert (kept["number"], kept["stage"]) == (lease["number"], "silent"), "on disk before it was told"
        other = racers[(winner + 1) % RACERS]
        until(lambda: "lender" in peers.linked(other), "another one sees the lender again")
        error, _ = two_lines(other.croft(*command))
        assert "2 of 2 processors taken" in error

        assert ended(running[winner]).returncode == 0, "whoever held it got it back, and was served"
        until(lambda: not held(lender), "all is free again")
        last = lender.json("leases")["leases"][0]
        assert last["number"] == lease["number"] and last["tasks"] == 1 and last["ended_at"] > lease["granted_at"]
