"""Bad input and faults: what a user, a stranger, a task or the machine does wrong, and what real peers make of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import croft
from croft.adapters.iroh_transport import IrohTransport
from croft.adapters.sqlite_database import SqliteDatabase
from croft.adapters.system import SystemClock, SystemEntropy
from croft.compute.worker_messages import ARGUMENT_BYTES_MAX, RESULT_BYTES_MAX
from croft.control import schema
from croft.errors import Refused
from croft.model.ids import PeerId
from croft.model.isolation import Grade
from croft.node.identity import load_identity
from croft.overlay.messages import PROTOCOL, Load
from croft.overlay.passport import Lends
from croft.overlay.service import Overlay
from support import peers
from support.other_user import give, wrapped_as_user
from support.peers import RealPeer, two_lines, until

CONTROL_GROUPS = Path("/sys/fs/cgroup")
NOTICE_S_MAX = 40.0
PRINTED_BYTES = 1 << 30
COMMAND_PRINTED_BYTES = 256 << 20
FILL = "for n in 1 2 3; do head -c 40M /dev/zero > $n; done; sleep 600"


SHORT_LIVED: list[str] = []
"""An invitation for ten seconds, the least there is: made first, tried last."""


@pytest.fixture(scope="module")
def trio() -> Iterator[list[RealPeer]]:
    """Three peers of three people on this machine, members of one community."""
    with peers.homes() as base:
        made = peers.community(base, ["ada", "bob", "cyd"])
        SHORT_LIVED.append(made[0].json("invite", "--line-only", "--for", "10s")["line"])
        yield made


@pytest.fixture(scope="module")
def grid(trio: list[RealPeer]) -> Iterator[croft.Grid]:
    with trio[0].grid() as connected:
        yield connected


@pytest.fixture
def folder() -> Iterator[Path]:
    with peers.homes() as base:
        yield base


# --- invitations -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger() -> Iterator[RealPeer]:
    """A peer that nobody has let in."""
    with peers.homes() as base:
        yield peers.make(base, "stranger").start()


@pytest.mark.parametrize(
    "mangle",
    [
        lambda line: line[:-1],
        lambda line: line[:40] + ("a" if line[40] != "a" else "b") + line[41:],
        lambda line: line.removeprefix("croft:"),
        lambda line: "croft:",
        lambda line: line + line,
        lambda line: "☃" * 2000,
    ],
    ids=["cut", "one letter changed", "no prefix", "only the prefix", "twice", "no letters"],
)
def test_a_mangled_invitation_is_a_usage_error(
    trio: list[RealPeer], stranger: RealPeer, mangle: Callable[[str], str]
) -> None:
    line = trio[0].api.invite(is_spoken=False).line

    ended = stranger.croft("join", mangle(line))

    assert ended.returncode == 2
    two_lines(ended)


def test_a_used_invitation_is_refused(trio: list[RealPeer], stranger: RealPeer, folder: Path) -> None:
    line = trio[0].api.invite(is_spoken=False).line
    peers.make(folder, "first").start("--join", line)

    ended = stranger.croft("join", line)

    assert ended.returncode == 5 and "used" in two_lines(ended)[0]


def test_a_withdrawn_invitation_is_refused(trio: list[RealPeer], stranger: RealPeer) -> None:
    made = trio[0].json("invite", "--line-only")
    trio[0].ok("invite", "withdraw", made["invitation"])

    ended = stranger.croft("join", made["line"])

    assert ended.returncode == 5 and "withdrawn" in two_lines(ended)[0]


def test_an_invitation_that_its_maker_does_not_know_is_refused(stranger: RealPeer, folder: Path) -> None:
    maker = peers.make(folder, "maker").start()
    line = maker.api.invite(is_spoken=False).line
    maker.stop()
    for file in maker.home.glob("croft.db*"):
        file.unlink()
    maker.start("--set", f"port={line_port(line)}")

    ended = stranger.croft("join", line)

    assert ended.returncode == 5, ended.stderr
    two_lines(ended)


def line_port(line: str) -> str:
    from croft.overlay.invitation_code import Line, parse_code

    parsed = parse_code(line)
    assert isinstance(parsed, Line)
    return parsed.addresses[0].rpartition(":")[2]


def test_an_invitation_whose_maker_is_off_says_so(stranger: RealPeer, folder: Path) -> None:
    maker = peers.make(folder, "maker").start()
    line = maker.api.invite(is_spoken=False).line
    maker.stop()

    ended = stranger.croft("join", line)

    assert ended.returncode == 4
    two_lines(ended)


def test_withdrawing_what_was_never_made_is_not_found(trio: list[RealPeer]) -> None:
    ended = trio[0].croft("invite", "withdraw", "0123456789")

    assert ended.returncode == 3
    two_lines(ended)


# --- strangers and doubles -------------------------------------------------------------------------------------------


def test_a_strangers_dial_is_refused_with_a_reason_and_changes_nothing(trio: list[RealPeer], folder: Path) -> None:
    before = {peer.peer for peer in trio[0].api.peers()}
    status = trio[0].api.status()

    with pytest.raises(Refused) as refusal:
        asyncio.run(dial_as_stranger(folder, status.peer, status.addresses))

    assert "refused the link" in refusal.value.message
    assert {peer.peer for peer in trio[0].api.peers()} == before


async def dial_as_stranger(folder: Path, peer: str, addresses: list[str]) -> None:
    home = RealPeer("mallory", folder / "mallory").files
    home.make()
    identity, _ = load_identity(home)
    lends = Lends(1, 1 << 30, 1 << 28, Grade.B, "3.11", "x86_64", "1")
    async with contextlib.AsyncExitStack() as stack:
        database = await SqliteDatabase.open(home.database)
        stack.push_async_callback(database.close)
        transport = await IrohTransport.open(identity.device.raw, [PROTOCOL], "127.0.0.1:0")
        stack.push_async_callback(transport.close)
        own = identity.own("mallory")
        overlay = Overlay(
            own, transport, database, SystemClock(), SystemEntropy(), lambda: lends, lambda: Load(0, 0.0, 0.0)
        )
        serving = asyncio.create_task(overlay.serve())
        await asyncio.sleep(0)
        try:
            while True:
                await asyncio.sleep(0)
                with contextlib.suppress(AssertionError):
                    await overlay.links.ensure(PeerId(peer), addresses)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def test_two_peers_with_one_key_are_told_of_each_other_and_of_the_port(folder: Path) -> None:
    bob = peers.community(folder, ["ada", "bob"])[1]
    bob.stop()
    copied = folder / "copy"
    copied.mkdir(mode=0o700)
    for name in ("keys", "croft.db"):
        subprocess.run(["cp", "-a", str(bob.home / name), str(copied / name)], check=True)
    copy = peers.make(folder, "copy").start()
    bob.start()

    def warnings(code: str) -> list[schema.HealthWarning]:
        return [warning for peer in (bob, copy) for warning in peer.api.status().health if warning.code == code]

    [double, *_] = until(lambda: warnings("identity.used_elsewhere"), "one of them is warned")
    assert double.severity == "critical" and double.remedy
    # Both remembered one port: who came second moved, and says so.
    [moved] = warnings("port.moved")
    assert moved.remedy and copy.api.status().peer == bob.api.status().peer


# --- the machine -----------------------------------------------------------------------------------------------------


def test_a_configured_port_that_is_taken_is_an_error(folder: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])

        ended = peers.make(folder, "ada").croft("up", "--set", f"port={port}")

    assert port in two_lines(ended)[0]


def test_a_home_that_cannot_be_written_is_named(folder: Path) -> None:
    give(folder, 0)
    (folder / "closed").mkdir(mode=0o755)
    peer = RealPeer("closed", folder / "closed", wrap=wrapped_as_user())
    peers.LIVING.append(peer)
    folder.chmod(0o755)
    (folder / "closed").chmod(0o555)

    for command in ("up", "init"):
        ended = peer.croft(command)
        assert ended.returncode == 1 and str(folder / "closed") in two_lines(ended)[0]


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "croft-test", str(place)], check=True)
    try:
        yield place
    finally:
        # Without its home nobody would find the daemon any more.
        for peer in [peer for peer in peers.LIVING if peer.home == place]:
            peer.stop()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_peer_does_not_start_on_a_full_disk(folder: Path) -> None:
    with small_disk(folder / "ada", "16m"):
        ended = peers.make(folder, "ada").croft("up")

        assert "full" in two_lines(ended)[0]


def test_a_disk_that_fills_up_fails_what_needs_it_and_nothing_else(folder: Path) -> None:
    with small_disk(folder / "ada", "80m") as home:
        ada = peers.make(folder, "ada").start()
        ada.ok("invite", "--line-only")
        fill(home / "filler")

        tries = (ada.croft("invite", "--line-only") for _ in range(50))
        refused = next(ended for ended in tries if ended.returncode)
        assert ada.json("status")["name"] == "ada"
        (home / "filler").unlink()
        ada.ok("invite", "--line-only")

    assert refused.returncode == 1 and "full" in two_lines(refused)[0]


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def test_every_command_says_that_the_peer_is_not_running(folder: Path) -> None:
    peer = RealPeer("ada", folder / "ada")
    for command in (["status"], ["peers"], ["jobs"], ["invite"], ["invite", "list"], ["join", "1-a-b"]):
        ended = peer.croft(*command)
        assert ended.returncode == 4, command
        assert two_lines(ended) == ("the peer is not running", "Start it with `croft up`.")
    ended = peer.croft("run", "--", "true")
    assert ended.returncode == 125 and two_lines(ended)[0] == "the peer is not running"
    with pytest.raises(croft.Unreachable, match="not running"):
        croft.connect(peer.home)


@pytest.mark.parametrize(
    "text", ["lend.cpu = 1", "[lend]\nCPUS = 2", "name = [", 'lend.memory = "lots"', "port = 70000"]
)
def test_a_setting_that_cannot_be_read_is_named(folder: Path, text: str) -> None:
    peer = peers.make(folder, "ada")
    (peer.home / "config.toml").write_text(text + "\n")

    for command in (["config", "show"], ["up"]):
        ended = peer.croft(*command)
        assert ended.returncode == 2
        assert "config.toml" in two_lines(ended)[0]


def test_an_unknown_setting_on_the_command_line_is_named(folder: Path) -> None:
    ended = peers.make(folder, "ada").croft("up", "--set", "lend.cpu=1")

    assert "lend.cpu" in two_lines(ended)[0]


# --- functions, arguments and results --------------------------------------------------------------------------------


def test_a_function_that_cannot_be_serialised_is_named_at_once(grid: croft.Grid) -> None:
    lock = threading.Lock()

    def hold() -> bool:
        return lock.locked()

    with pytest.raises(croft.Unserialisable, match="hold") as caught:
        grid.submit(hold)
    assert caught.value.remedy
    with pytest.raises(croft.Unserialisable, match="not callable"):
        grid.submit(5)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(croft.Unserialisable, match="argument"):
        grid.submit(len, lock)


def test_an_argument_that_is_too_large_is_refused_here(grid: croft.Grid) -> None:
    with pytest.raises(croft.TooLarge, match="limit"):
        grid.submit(len, bytes(ARGUMENT_BYTES_MAX + 1))


def test_arguments_that_refer_to_themselves_travel_and_bottomless_ones_are_refused(grid: croft.Grid) -> None:
    ring: list[object] = [1]
    ring.append(ring)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]

    assert grid.submit(lambda ring: ring[1] is ring and ring[0], ring).result() == 1
    for refused in (lambda: grid.submit(len, deep), lambda: grid.map(len, [[], deep], name="deep", detach=True)):
        with pytest.raises(croft.Unserialisable, match="argument"):
            refused()
    until(lambda: not [job for job in grid.jobs() if job.label == "deep"], "no half of a job is left")


def test_a_result_that_the_codec_cannot_carry_is_named(grid: croft.Grid) -> None:
    with pytest.raises(croft.CodecError, match="object") as caught:
        grid.submit(lambda: object()).result()
    assert caught.value.remedy


def test_a_result_that_is_too_large_is_named(grid: croft.Grid) -> None:
    with pytest.raises(croft.TooLarge, match="too large"):
        grid.submit(lambda size: bytes(size), RESULT_BYTES_MAX + 1).result()


# --- tasks that go wrong ---------------------------------------------------------------------------------------------


def outcome(grid: croft.Grid, function: Callable[..., Any], **options: Any) -> Any:
    """What the function returned on bob, or the exception that came instead; bob goes on working."""
    try:
        [result] = list(grid.map(function, [0], on=["bob"], **options))
    except Exception as error:
        result = error
    assert list(grid.map(abs, [-1, -2], on=["bob"])) == [1, 2]
    return result


def test_a_task_that_raises_brings_its_exception_and_the_remote_traceback(grid: croft.Grid) -> None:
    def fail(_: int) -> None:
        print("on the way")
        raise KeyError("this one")

    error = outcome(grid, fail)

    assert isinstance(error, KeyError) and error.args == ("this one",)
    assert "in fail" in str(error.__cause__) and "on bob" in str(error.__cause__)
    assert "on the way" in str(error.__cause__)


def test_a_task_that_exits_dies_alone(grid: croft.Grid) -> None:
    def leave(_: int) -> None:
        import sys

        sys.exit(3)

    def vanish(_: int) -> None:
        os._exit(3)

    for function in (leave, vanish):
        assert isinstance(outcome(grid, function), croft.TaskDied)


def test_a_task_that_segfaults_dies_alone(grid: croft.Grid) -> None:
    def crash(_: int) -> None:
        import ctypes

        ctypes.string_at(0)

    error = outcome(grid, crash)

    assert isinstance(error, croft.TaskDied) and "SIGSEGV" in str(error)


def test_a_task_that_hangs_is_ended_by_its_limit(grid: croft.Grid) -> None:
    error = outcome(grid, lambda _: time.sleep(600), time="1s")

    assert isinstance(error, croft.TaskTimedOut) and "1 s" in str(error)


def test_a_task_that_forks_without_end_is_contained(grid: croft.Grid) -> None:
    def bomb(_: int) -> int:
        started = 0
        try:
            while started < 5000:
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
                started += 1
        except OSError:
            pass
        return started

    made = outcome(grid, bomb)

    assert not isinstance(made, int) or made < 1000


def test_a_task_that_fills_memory_dies_or_is_told(grid: croft.Grid) -> None:
    error = outcome(grid, lambda _: len(bytearray(b"x") * (2 << 30)))

    assert isinstance(error, MemoryError | croft.TaskDied)


def test_a_task_that_fills_the_disk_is_told(grid: croft.Grid) -> None:
    def flood(_: int) -> None:
        with open("/tmp/flood", "wb") as file:
            while True:
                file.write(b"x" * (1 << 20))

    error = outcome(grid, flood)

    assert isinstance(error, OSError | croft.TaskDied)


def test_a_task_that_prints_gigabytes_keeps_its_result(grid: croft.Grid) -> None:
    def chat(_: int) -> str:
        for _ in range(1 << 10):
            os.write(1, b"x" * (1 << 20))
        return "done"

    assert outcome(grid, chat) == "done"


# --- commands that go wrong ------------------------------------------------------------------------------------------


def test_a_command_that_prints_without_measure_is_passed_on_whole(trio: list[RealPeer]) -> None:
    running = subprocess.Popen(
        trio[0].command("run", "--on", "bob", "--", "head", "-c", str(COMMAND_PRINTED_BYTES), "/dev/zero"),
        stdout=subprocess.PIPE,
        env=trio[0].variables(),
    )
    assert running.stdout is not None
    with running.stdout:
        count = sum(len(part) for part in iter(lambda: running.stdout.read(1 << 20), b""))  # type: ignore[union-attr]

    assert running.wait(20) == 0 and count == COMMAND_PRINTED_BYTES


def test_a_command_that_fills_the_disk_is_ended_and_the_limit_named(trio: list[RealPeer]) -> None:
    ended = trio[0].croft("run", "--on", "bob", "--", "sh", "-c", FILL)

    assert ended.returncode == 125 and "disk limit" in two_lines(ended)[0]
    until(trio[1].is_idle, "bob has cleared it away")


def test_a_command_that_runs_too_long_is_ended(trio: list[RealPeer]) -> None:
    ended = trio[0].croft("run", "--on", "bob", "--time", "1s", "--", "sleep", "600")

    assert ended.returncode == 128 + signal.SIGKILL and "longer than its limit" in two_lines(ended)[0]


def test_folders_that_resist_are_removed_all_the_same(trio: list[RealPeer]) -> None:
    nest = "i=0; while [ $i -lt 60 ]; do mkdir -p deep/er && cd deep/er && chmod 700 . && i=$((i+1)); done; chmod 000 ."
    trio[0].croft("run", "--on", "bob", "--", "sh", "-c", nest)

    until(lambda: trio[1].job_folders() == [], "bob has removed it")


def test_what_nobody_can_give_is_refused_with_reasons(trio: list[RealPeer]) -> None:
    ended = trio[0].croft("run", "--on", "bob", "--mem", "900G", "--", "true")

    assert ended.returncode == 125 and "bob" in two_lines(ended)[0] and "memory" in two_lines(ended)[0]


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def sleepers(seconds: str) -> list[int]:
    """Processes `sleep SECONDS`, in whatever box."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", seconds.encode()]:
                    found.append(int(process.name))
    return found


def unlike_any_other() -> str:
    return f"6{secrets.randbelow(10**6):06d}"


@pytest.mark.parametrize("command", ["run", "map"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_behind(
    trio: list[RealPeer], command: str, number: signal.Signals
) -> None:
    seconds = unlike_any_other()
    arguments = [command, "--on", "bob", "--", "sleep"] + ([seconds] if command == "run" else ["{}", ":::", seconds])
    running = trio[0].begin(*arguments)
    until(lambda: sleepers(seconds), "the command runs on bob")

    os.killpg(running.pid, number)
    said = running.communicate(timeout=20)

    assert running.returncode == 130, said
    assert "Traceback" not in said[1]
    until(lambda: not sleepers(seconds), "its process is gone")
    until(trio[1].is_idle, "its folder is gone and its slot is free")
    jobs = trio[0].api.jobs
    until(lambda: not [job for job in jobs() if (job.kind, job.state) == ("command", "running")], "the job is over")


def test_leaving_a_map_early_stops_its_tasks_on_the_peers(trio: list[RealPeer], grid: croft.Grid) -> None:
    seconds = unlike_any_other()

    def sleep(text: str) -> None:
        subprocess.run(["sleep", text])

    mapped = grid.map(sleep, [seconds] * 4, on=["bob"])
    until(lambda: sleepers(seconds), "the tasks run on bob")
    mapped.cancel()

    until(lambda: not sleepers(seconds), "their processes are gone")
    until(trio[1].is_idle, "the slots are free")


# --- peers that die --------------------------------------------------------------------------------------------------


def test_a_peer_killed_before_it_answers_costs_nothing_but_time(trio: list[RealPeer], grid: croft.Grid) -> None:
    trio[2].kill()

    assert list(grid.map(abs, range(-50, 0), on=["bob", "cyd"])) == list(range(50, 0, -1))
    trio[2].start()
    peers.await_links(trio)


def test_a_peer_killed_midway_costs_only_a_repetition(trio: list[RealPeer], grid: croft.Grid) -> None:
    def nap(number: int) -> int:
        time.sleep(0.2)
        return number

    mapped = grid.map(nap, range(60), on=["bob", "cyd"])
    until(lambda: {"bob", "cyd"} <= set(mapped.done_by), "both take part")
    trio[2].kill()

    assert list(mapped) == list(range(60))
    assert sum(mapped.done_by.values()) == 60, "each task counts once"
    trio[2].start()
    peers.await_links(trio)


def test_what_a_peer_answered_before_it_was_killed_stands(trio: list[RealPeer], grid: croft.Grid) -> None:
    mapped = grid.map(abs, range(20), on=["cyd"])
    until(lambda: mapped.done_by.get("cyd") == 20, "cyd has answered")
    trio[2].kill()

    assert list(mapped) == list(range(20))
    assert trio[0].ok("run", "--avoid", "cyd", "--", "echo", "here") == "here\n"
    trio[2].start()
    peers.await_links(trio)


def test_a_command_whose_peer_is_killed_after_it_printed_says_so(trio: list[RealPeer]) -> None:
    running = trio[0].begin("run", "--on", "cyd", "--", "sh", "-c", "echo begun; sleep 600")
    assert running.stdout is not None and running.stdout.readline() == "begun\n"
    trio[2].kill()
    _, said = running.communicate(timeout=NOTICE_S_MAX)
    trio[2].start()
    peers.await_links(trio)

    assert running.returncode == 125
    assert "cyd" in said and "lost" in said and len(said.strip().splitlines()) == 2


def test_a_killed_daemon_starts_again_and_leaves_nothing_of_its_boxes(trio: list[RealPeer]) -> None:
    seconds = unlike_any_other()
    bob = trio[1]
    running = trio[0].begin("run", "--on", "bob", "--", "sh", "-c", f"echo on; sleep {seconds}")
    assert running.stdout is not None and running.stdout.readline() == "on\n"
    process = bob.process
    assert process is not None and left_of(process)
    bob.kill()
    assert bob.job_folders() and left_of(process)

    bob.start()
    peers.await_links(trio)
    assert running.wait(NOTICE_S_MAX) == 125
    running.communicate()

    assert bob.job_folders() == [] and left_of(process) == []
    assert not sleepers(seconds)
    assert trio[0].ok("run", "--on", "bob", "--", "echo", "again") == "again\n"


def left_of(process: int) -> list[str]:
    """Control groups and folders that carry a peer's process id."""
    groups = [str(path) for path in CONTROL_GROUPS.glob(f"**/croft/{process}-*")]
    groups += [str(path) for path in CONTROL_GROUPS.glob(f"**/croft-{process}-*")]
    return groups + [str(path) for path in Path("/run").glob(f"croft-box-{process}-*")]


def test_a_program_whose_daemon_is_killed_is_told(folder: Path) -> None:
    ada = peers.make(folder, "ada").start()
    with ada.grid() as grid:
        future = grid.submit(time.sleep, 600)
        until(lambda: ada.api.status().lending.slots_busy, "the task runs")
        ada.kill()
        with pytest.raises(croft.Unreachable, match="daemon ended"):
            future.result(20)
        ada.start()
        assert grid.submit(abs, -3).result() == 3


def test_an_expired_invitation_is_refused(trio: list[RealPeer], stranger: RealPeer) -> None:
    until(lambda: "expired" in {one.state for one in trio[0].api.invitations()}, "it expires")

    ended = stranger.croft("join", SHORT_LIVED[0])

    assert ended.returncode == 5 and "expired" in two_lines(ended)[0]
