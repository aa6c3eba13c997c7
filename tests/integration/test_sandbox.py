"""What every sandbox promises; each kind that this machine offers must pass all that applies to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from blake3 import blake3

from croft.adapters.box_process import BoxProcess, ProcessSandbox
from croft.adapters.isolation_probe import Findings, isolation_of
from croft.adapters.python_runtime import builder_argv, runtime_environment, runtime_paths
from croft.adapters.sandbox import best_sandbox
from croft.compute.environment_messages import BuilderAnswer, Built
from croft.compute.worker_messages import ENVIRONMENT_VARIABLE, CommandExited, Output, RunCommand, Status
from croft.errors import ConnectionLost, Failed
from croft.model.isolation import Grade, Isolation
from croft.ports import BoxSpec
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream
from support.boxes import CONFINING_KINDS, KINDS, Peer, open_peer, sandbox_of, worker_spec
from support.wheels import make
from support.worker_process import arguments

CONTROL_GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> ProcessSandbox:
    return sandbox_of(request.param)


@pytest.fixture(params=CONFINING_KINDS)
def confining_sandbox(request: pytest.FixtureRequest) -> ProcessSandbox:
    return sandbox_of(request.param)


def with_peer(
    sandbox: ProcessSandbox, work_dir: Path | None, body: Callable[[Peer], Awaitable[None]], **changes: object
) -> None:
    async def run() -> None:
        async with open_peer(sandbox, work_dir, **changes) as peer:
            await body(peer)

    asyncio.run(run())


def own_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def talking_spec(name: str, and_then: str) -> BoxSpec:
    program = f"import os, sys, time; os.write(int(sys.argv[1]), b'hello'); {and_then}"
    return replace(worker_spec(None, name), argv=(sys.executable, "-IS", "-c", program, "{fd}"))


CANCELLED_PROGRAM = f"time.sleep(617.{os.getpid()})"


def own_groups() -> list[Path]:
    return [group for group in CONTROL_GROUPS.glob(f"**/*{os.getpid()}-*") if "probe" not in group.name]


def test_a_worker_runs_tasks_in_the_box(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        assert await peer.call(lambda x: x + 1, 41) == 42

    with_peer(sandbox, tmp_path, body)


def test_a_box_without_a_work_folder_runs_too(sandbox: ProcessSandbox) -> None:
    async def body(peer: Peer) -> None:
        assert await peer.call(lambda: 1) == 1

    with_peer(sandbox, None, body)


def test_it_works_on_the_faster_event_loop(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def run() -> None:
        async with open_peer(sandbox, tmp_path) as peer:
            assert await peer.call(lambda data: len(data), b"x" * (4 << 20)) == 4 << 20

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_what_is_written_to_the_work_folder_is_on_the_host(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    def write() -> None:
        with open("result", "w") as file:
            file.write("done")

    async def body(peer: Peer) -> None:
        await peer.call(write)
        assert (tmp_path / "result").read_text() == "done"

    with_peer(sandbox, tmp_path, body)


def test_a_command_runs_in_the_box(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        await peer.send(RunCommand(["sh", "-c", "echo $((6 * 7)); exit 3"], {}))
        assert await peer.receive() == Output(1, b"42\n")
        assert await peer.receive() == CommandExited(3)

    with_peer(sandbox, tmp_path, body)


def test_numpy_works_in_the_box(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    def invert() -> float:
        import numpy

        return float(numpy.linalg.inv(numpy.eye(50)).sum())

    async def body(peer: Peer) -> None:
        assert await peer.call(invert) == 50.0

    with_peer(sandbox, tmp_path, body, memory_bytes=1 << 30, environment=_one_thread())


def _one_thread() -> dict[str, str]:
    return {**worker_spec(None).environment, "OPENBLAS_NUM_THREADS": "1"}


def test_a_cancelled_read_loses_nothing(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        for number in range(20):
            reading = asyncio.create_task(peer.box.read(1))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert await peer.call(lambda x: x, number) == number

    with_peer(sandbox, tmp_path, body)


def test_a_cancelled_write_goes_out_whole(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        writing = asyncio.create_task(peer.call(lambda data: len(data), b"x" * (8 << 20)))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert await peer.call(lambda: "next") == "next"

    with_peer(sandbox, tmp_path, body)


def test_usage_counts_processor_time_and_memory(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    def burn() -> None:
        data = bytearray(b"x" * (50 << 20))
        until = time.process_time() + 0.5
        while time.process_time() < until:
            data[0] = 1

    async def run() -> None:
        async with open_peer(sandbox, tmp_path) as peer:
            before = peer.box.usage().cpu_s
            await peer.call(burn)
            usage = await peer.box.close()
        assert usage.cpu_s - before >= 0.4
        assert usage.memory_peak_bytes >= 50 << 20
        assert usage.death == ""

    asyncio.run(run())


def test_the_owners_own_work_comes_first_and_what_it_leaves_is_lent(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    """H8: while the owner keeps every processor busy, a box gets under a tenth; before and after, what is free."""

    def burn(until: float) -> None:
        while time.time() < until:
            sum(range(1000))

    async def used_share(peer: Peer, seconds: float) -> float:
        before, began = peer.box.usage().cpu_s, time.monotonic()
        await asyncio.sleep(seconds)
        return (peer.box.usage().cpu_s - before) / (time.monotonic() - began) / (os.cpu_count() or 1)

    async def run() -> None:
        async with open_peer(sandbox, tmp_path) as peer:
            burning = asyncio.create_task(peer.run(burn, [arguments(time.time() + 600)]))
            while await used_share(peer, 0.5) == 0:
                continue
            own = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
            try:
                await asyncio.sleep(0.5)
                under_load = await used_share(peer, 3.0)
            finally:
                for process in own:
                    process.kill()
                    process.wait()
            assert under_load < 0.1
            while await used_share(peer, 1.0) < 2 * under_load + 0.01:
                continue
            await peer.box.close()
            await burning

    asyncio.run(run())


def test_after_close_nothing_of_the_box_lives(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    marker = f"31{os.getpid()}.{time.monotonic_ns() % 10**9}"

    def leave(marker: str) -> None:
        subprocess.Popen(["sleep", marker], start_new_session=True)
        time.sleep(600)

    async def run() -> None:
        async with open_peer(sandbox, tmp_path) as peer:
            task = asyncio.create_task(peer.run(leave, [arguments(marker)]))
            while not alive(marker):
                await asyncio.sleep(0.005)
            await peer.box.close()
            await task
        deadline = time.monotonic() + 10
        while alive(marker) and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        assert not alive(marker)

    asyncio.run(run())


def box_processes() -> list[str]:
    """Command lines of what this run's cancelled boxes were to run, and of what makes boxes of it."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if CANCELLED_PROGRAM.encode() in line:
                found.append(line.decode(errors="replace"))
    return found


def alive(marker: str) -> bool:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", marker.encode()]:
                return True
    return False


def test_fifty_boxes_leave_no_descriptor_no_group_and_no_folder(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def run() -> None:
        first = await sandbox.open(worker_spec(tmp_path, "first"))
        await first.close()
        await asyncio.sleep(0)
        before, run_folders = own_descriptors(), sorted(p.name for p in Path("/run").glob(f"croft-box-{os.getpid()}-*"))
        for start in range(0, 50, 10):
            specs = [talking_spec(f"leak-{start + n}", "time.sleep(60)") for n in range(10)]
            for box in await asyncio.gather(*map(sandbox.open, specs)):
                await box.close()
        await asyncio.sleep(0)
        assert own_descriptors() <= before
        assert sorted(p.name for p in Path("/run").glob(f"croft-box-{os.getpid()}-*")) == run_folders
        assert own_groups() == []

    asyncio.run(run())


def test_opening_a_box_does_not_hold_up_the_loop(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def run() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        counting = asyncio.create_task(count())
        async with open_peer(sandbox, tmp_path):
            pass
        counting.cancel()
        assert turns >= 5

    asyncio.run(run())


def test_a_program_that_cannot_start_fails_with_what_it_said(sandbox: ProcessSandbox) -> None:
    async def run() -> None:
        with pytest.raises(Failed, match="no-such-program"):
            await sandbox.open(BoxSpec("broken", ("/usr/bin/env", "no-such-program")))

    asyncio.run(run())


def test_a_cancelled_open_leaves_nothing(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def run() -> None:
        warm = await sandbox.open(worker_spec(tmp_path, "warm"))
        await warm.close()
        before = own_descriptors()
        for number in range(10):
            opening = asyncio.create_task(sandbox.open(talking_spec(f"cancelled-{number}", CANCELLED_PROGRAM)))
            await asyncio.sleep(0.002 * number)
            opening.cancel()
            [opened] = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(opened, BoxProcess):  # it was quicker than we
                await opened.close()
        deadline = time.monotonic() + 10
        while (own_descriptors() > before or own_groups() or box_processes()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert own_descriptors() <= before and own_groups() == []
        assert box_processes() == []

    asyncio.run(run())


def test_a_program_that_ends_is_read_to_its_end_and_its_exit_code_told(sandbox: ProcessSandbox) -> None:
    async def run() -> None:
        box = await sandbox.open(talking_spec("ends", "sys.exit(7)"))
        assert await box.read(100) == b"hello"
        assert await box.read(100) == b""
        with pytest.raises(ConnectionLost):
            await box.write(b"x")
        assert (await box.close()).death == "the program ended with exit code 7"

    asyncio.run(run())


def test_a_task_out_of_memory_does_not_stop_the_next_one(confining_sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        outcomes = await peer.run(lambda n: len(bytearray(n)), [arguments(2 << 30)])
        assert all(status != Status.OK for _, status, _ in outcomes)
        assert await peer.call(lambda: "alive") == "alive"

    with_peer(confining_sandbox, tmp_path, body)


def test_too_much_in_the_work_folder_ends_the_box_and_is_named(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    def fill() -> None:
        for number in range(100):
            with open(f"part{number}", "wb") as file:
                file.write(b"x" * (1 << 20))
        time.sleep(600)

    async def body(peer: Peer) -> None:
        await peer.run(fill, [arguments()])
        assert "disk limit 16 MiB" in (await peer.box.close()).death

    with_peer(sandbox, tmp_path, body)


def test_too_many_files_in_the_work_folder_end_the_box_and_are_named(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    def litter() -> None:
        for number in range(2000):
            open(f"file{number}", "w").close()
        time.sleep(600)

    async def body(peer: Peer) -> None:
        await peer.run(litter, [arguments()])
        assert "limit of 500 files" in (await peer.box.close()).death

    with_peer(sandbox, tmp_path, body)


# --- which sandbox ---------------------------------------------------------------------------------------------------


def test_the_best_sandbox_of_this_machine_runs_a_box(tmp_path: Path) -> None:
    sandbox = best_sandbox(allows_unconfined=True)

    async def body() -> None:
        box = await sandbox.open(worker_spec(tmp_path))
        await box.close()

    asyncio.run(body())
    assert (sandbox.isolation().grade is Grade.A) == (sandbox.isolation().reason == "")


def test_each_lower_grade_says_why() -> None:
    assert isolation_of(Findings(object(), "", "", "")) == Isolation(Grade.A)  # type: ignore[arg-type]  # any will do
    assert isolation_of(Findings(None, "g", "", "")).grade is Grade.B
    assert isolation_of(Findings(None, "g", "n", "")).grade is Grade.C
    assert isolation_of(Findings(None, "g", "n", "l")).grade is Grade.D
    assert "n" in isolation_of(Findings(None, "g", "n", "l")).reason


def test_an_environment_is_built_in_the_box_and_seen_by_the_next(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    """Also where a box has a user of its own, and the wheels and what was built lie in folders closed to others."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    wheels, work = closed / "wheels", closed / "build"
    work.mkdir(mode=0o700)
    wheel = make(wheels, "tiny", {"tiny.py": "VALUE = 42\n"})
    wheel.chmod(0o644)
    digest = blake3(wheel.read_bytes()).hexdigest()
    program = builder_argv(1 << 20, 100, (wheel.name, digest, str(wheel)))

    async def build() -> object:
        spec = replace(worker_spec(work, "build"), argv=program, read_only=(*runtime_paths(), str(wheels)))
        box = await sandbox.open(spec)
        try:
            async with MessageStream(box, step="test") as messages:
                return decode_union(await messages.receive() or b"", BuilderAnswer, step="test")
        finally:
            await box.close()

    def value() -> int:
        import tiny  # type: ignore[import-not-found]  # where this runs it is there

        return int(tiny.VALUE)

    async def use(peer: Peer) -> None:
        assert await peer.call(value) == 42

    answer = asyncio.run(build())
    work.chmod(0o755)

    assert isinstance(answer, Built) and answer.files == 4
    with_peer(
        sandbox,
        None,
        use,
        read_only=(*runtime_paths(), str(work)),
        environment={**runtime_environment(), ENVIRONMENT_VARIABLE: str(work)},
    )


# --- the owner first -------------------------------------------------------------------------------------------------


def spin(cpu_s: float) -> str:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass
    return "done"


def test_a_box_that_is_held_stands_still_and_then_goes_on(sandbox: ProcessSandbox) -> None:
    async def body(peer: Peer) -> None:
        assert await peer.call(spin, 0.0) == "done"
        await peer.box.hold(True)
        await peer.box.hold(True)
        answering = asyncio.create_task(peer.call(spin, 0.01))
        _, pending = await asyncio.wait({answering}, timeout=0.5)
        assert pending, "nothing runs in it"
        await peer.box.hold(False)
        assert await answering == "done"

    with_peer(sandbox, None, body)


def test_a_box_that_is_held_can_be_closed(sandbox: ProcessSandbox) -> None:
    async def body(peer: Peer) -> None:
        await peer.box.hold(True)
        await asyncio.wait_for(peer.box.close(), 20)

    with_peer(sandbox, None, body)


def test_a_box_gets_no_more_processors_than_it_is_left(sandbox: ProcessSandbox) -> None:
    """Where the machine can hold it to that: by a control group."""

    async def body(peer: Peer) -> None:
        assert await peer.call(spin, 0.0) == "done"
        await peer.box.limit(0.2)
        before, since = peer.box.usage().cpu_s, time.monotonic()
        assert await peer.call(spin, 0.2) == "done"
        if sandbox.isolation().grade is Grade.A:
            share = (peer.box.usage().cpu_s - before) / (time.monotonic() - since)
            assert share < 0.4

    with_peer(sandbox, None, body)


def test_devices_are_readable_where_the_environment_says(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    picture = tmp_path / "cam.jpg"
    picture.write_text("a picture")

    def look() -> tuple[str, bytes]:
        with open(os.environ["CROFT_DEVICE_CAMERA"]) as camera, open(os.environ["CROFT_DEVICE_RANDOM_2"], "rb") as node:
            return camera.read(), node.read(4)

    async def body(peer: Peer) -> None:
        shown, drawn = await peer.call(look)  # type: ignore[misc]
        assert shown == "a picture" and len(drawn) == 4

    with_peer(sandbox, None, body, devices={"camera": str(picture), "random-2": "/dev/urandom"})
