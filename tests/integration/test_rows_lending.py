"""The rows of the feature list on lending: offers, leases, devices, and the owner's own work first."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import croft
from croft.adapters.process_tree import children_of_all, descendants, stat_fields
from support import peers
from support.peers import RealPeer, two_lines, until

RACERS = 10


def held(lender: RealPeer) -> list[dict[str, Any]]:
    """The leases that somebody has of a peer now."""
    return [lease for lease in lender.json("leases")["leases"] if lease["ended_at"] is None]


def past(lender: RealPeer, count: int) -> list[dict[str, Any]]:
    """The last leases that have ended, newest first; nothing while there are fewer."""
    found = [lease for lease in lender.json("leases")["leases"] if lease["ended_at"] is not None]
    return found[:count] if len(found) >= count else []


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


def offered_by(peer: RealPeer, name: str) -> list[dict[str, Any]]:
    """What one peer offers to another, as that one sees it."""
    return [offer for offer in peer.json("offer", "list")["offers"] if offer["name"] == name]


def test_g1_an_offer_is_for_whom_it_says_and_for_its_hours() -> None:
    """G1: an offer to friends at some hours: others see none and are refused, out of hours the friend is told when."""
    hour = time.localtime().tm_hour
    now, later = f"{hour:02}-{(hour + 2) % 24:02}", f"{(hour + 3) % 24:02}-{(hour + 4) % 24:02}"
    with peers.homes() as base:
        bob = peers.make(base, "bob", settings={"lend.cpus": "0"})
        ada, cleo, dave = (peers.make(base, name) for name in ("ada", "cleo", "dave"))
        for peer in (bob, ada, cleo, dave):
            peer.start()
        for peer in (ada, cleo):
            peer.api.join(bob.api.invite(is_spoken=False).line)
        peers.await_links([bob, ada, cleo])
        bob.ok("contacts", "add", "ada", "my friend")
        assert offered_by(ada, "bob") == [], "nothing is lent without an offer"

        made = bob.json("offer", "cpu=1", "mem=512M", "disk=64M", "--to", "friends", "--when", now)
        (seen,) = until(lambda: offered_by(ada, "bob"), "the friend sees the offer")
        assert (seen["lent"]["cpu"], seen["to"], seen["is_standing"]) == (1, ["you"], True)
        assert 0 < seen["expires_at"] - time.time() <= 3600
        assert ada.ok("run", "--on", "bob", "--", "echo", "hello") == "hello\n"
        with ada.grid() as grid:
            assert list(grid.map(abs, [-1, -2], on=["bob"])) == [1, 2]

        assert offered_by(cleo, "bob") == [] and offered_by(dave, "bob") == []
        error, hint = two_lines(cleo.croft("run", "--on", "bob", "--", "true"))
        assert "bob" in error and "lends no processors now" in error and hint

        bob.ok("offer", "withdraw", str(made["number"]))
        bob.ok("offer", "cpu=1", "mem=512M", "disk=64M", "--to", "my friend", "--when", later)
        until(lambda: any(not offer["is_standing"] for offer in offered_by(ada, "bob")), "the friend sees the new one")
        error, _ = two_lines(ada.croft("run", "--on", "bob", "--", "true"))
        assert f"it lends to you at {later[:2]}:00-{later[3:]}:00" in error

        bob.stop()
        bob.start()
        assert [offer["number"] for offer in offered_by(bob, "bob")] == [2], "offers outlive a restart"


def test_d11_a_device_is_lent_where_it_is_and_to_one_job_at_a_time(tmp_path: Path) -> None:
    """D11: `camera=…` is on one peer: only that one matches, and two jobs cannot hold it at once."""
    tmp_path.chmod(0o755)
    picture = tmp_path / "cam.jpg"
    picture.write_text("a picture")
    with peers.homes() as base:
        ada, cleo = (peers.make(base, name) for name in ("ada", "cleo"))
        bob = peers.make(base, "bob", settings={"lend.devices": f"camera={picture}"})
        for peer in (ada, bob, cleo):
            peer.start()
        for peer in (bob, cleo):
            peer.api.join(ada.api.invite(is_spoken=False).line)
        peers.await_links([ada, bob, cleo])
        until(lambda: offered_by(ada, "bob") and offered_by(cleo, "bob"), "both see the camera")
        look = ("run", "-v", "--need", "camera")
        first = ada.begin(*look, "--", "sh", "-c", 'cat "$CROFT_DEVICE_CAMERA"; sleep 4')
        until(lambda: any("camera" in lease["amounts"] for lease in held(bob)), "it is held")
        error, _ = two_lines(cleo.croft(*look, "--wait", "0", "--", "true"))
        second = cleo.begin(*look, "--", "sh", "-c", 'echo >> "$CROFT_DEVICE_CAMERA" || cat "$CROFT_DEVICE_CAMERA"')
        with ada.grid() as grid:
            mapped = grid.map(read_camera, [0], needs=["camera"])
            (shown,) = mapped
        with pytest.raises(croft.Refused, match="lends us no telescope"), cleo.grid() as grid:
            list(grid.map(abs, [1], needs=["telescope"]))

        assert "1 of 1 camera taken" in error
        for running in (first, second):
            done = ended(running)
            assert (done.returncode, done.stdout) == (0, "a picture"), done.stderr
            assert "running on bob" in done.stderr
        assert shown == "a picture" and list(mapped.done_by) == ["bob"]
        assert picture.read_text() == "a picture", "it is lent to be read"


def read_camera(_: int) -> str:
    return Path(os.environ["CROFT_DEVICE_CAMERA"]).read_text()


def cpu_s(processes: Iterable[int]) -> float:
    """Processor time that processes, and those whose end they have seen, have used so far."""
    ticks = [sum(map(int, fields[11:15])) for process in processes if (fields := stat_fields(process))]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def lent_cpu_s(lender: RealPeer) -> float:
    """Processor time that boxes of a peer, and all that runs in them, have used so far."""
    process = lender.process
    assert process is not None
    return cpu_s(descendants(process, children_of_all())[1:])


class OwnersPrograms:
    """Programs of a lender's owner, on a machine that runs nothing else, as far as the lender can see.

    What else runs on the machine of this test is no business of it: the lender reads another file as /proc/stat.
    """

    def __init__(self, account: Path) -> None:
        self._account = account
        self._running: list[subprocess.Popen[bytes]] = []
        self._started = time.monotonic()
        self._past_s = 0.0
        self._is_over = threading.Event()
        self._write()
        self._writer = threading.Thread(target=self._keep_account)
        self._writer.start()

    @property
    def view(self) -> list[str]:
        """What to run a lender's commands by, so that it sees just these programs."""
        see = 'mount --bind "$0" /proc/stat && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", see, str(self._account)]

    def run(self, count: int) -> None:
        """Starts programs that keep one processor busy each."""
        self._running += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]

    def stop(self) -> None:
        """Ends all that run."""
        self._past_s += cpu_s(one.pid for one in self._running)
        running, self._running = self._running, []
        for one in running:
            one.kill()
            one.wait()

    def close(self) -> None:
        """Ends everything."""
        self.stop()
        self._is_over.set()
        self._writer.join()

    def _keep_account(self) -> None:
        while not self._is_over.wait(0.1):
            self._write()

    def _write(self) -> None:
        used = self._past_s + cpu_s(one.pid for one in self._running)
        idle = (time.monotonic() - self._started) * (os.cpu_count() or 1) - used
        ticks = [int(seconds * os.sysconf("SC_CLK_TCK")) for seconds in (used, max(0.0, idle))]
        line = f"cpu  {ticks[0]:012} 0 0 {ticks[1]:012} 0 0 0 0 0 0\n"
        with self._account.open("r+" if self._account.exists() else "w") as file:
            file.write(line)


def burn(number: int) -> int:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    return number


def test_h8_the_owners_own_work_comes_first_and_that_of_others_goes_on_after_it() -> None:
    """H8: under load of the owner's own, boxes get at most a tenth of the processors within 5 s; then they go on."""
    cpus = os.cpu_count() or 1
    with peers.homes() as base, contextlib.closing(OwnersPrograms(base / "stat")) as programs:
        # Where something hides a part of /proc, the kernel gives boxes none of their own.
        settings = {"lend.idle": "5%", "lend.cpus": "1", "sandbox.required_grade": "C"}
        bob = peers.make(base, "bob", settings=settings, wrap=programs.view)
        ada = peers.make(base, "ada")
        for peer in (ada, bob):
            peer.start()
        bob.api.join(ada.api.invite(is_spoken=False).line)
        peers.await_links([ada, bob])
        with ada.grid() as grid:
            mapped = grid.map(burn, range(40), on=["bob"])
            first = next(mapped)
            programs.run(cpus)
            until(lambda: "own programs" in bob.api.status().lending.reason, "its owner is seen to be busy", 5)
            time.sleep(0.5)
            before, since = lent_cpu_s(bob), time.monotonic()
            time.sleep(2)
            share = (lent_cpu_s(bob) - before) / (time.monotonic() - since) / cpus
            status = bob.json("status")["lending"]
            programs.stop()
            rest = list(mapped)

        assert share <= 0.1
        assert status["slots_now"] == 0 and status["slots"] == 1
        assert [first, *rest] == list(range(40)), "it went on, and each task counted once"
        until(lambda: bob.json("status")["lending"]["slots_now"] == 1, "all is lent again")


def test_d8_the_record_of_a_lease_names_what_ended_its_box_or_something_in_it() -> None:
    """D8: the receipt names the cause."""
    with peers.homes() as base:
        ada = peers.make(base, "ada").start()
        ada.croft("run", "--mem", "64M", "--", "sh", "-c", "head -c 400000000 /dev/zero | tail")
        ada.croft("run", "--disk", "1M", "--", "sh", "-c", "head -c 9000000 /dev/zero > large; sleep 20")
        by_disk, by_memory = until(lambda: past(ada, 2), "both are settled")

    assert "disk limit 1 MiB of /job exceeded" in by_disk["death"]
    assert "memory limit 64 MiB exceeded" in by_memory["death"]
    assert by_memory["tasks"] == 1 and by_memory["memory_peak_bytes"] > 32 << 20
