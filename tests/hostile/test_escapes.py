"""Attempts of foreign code to reach out of its box. Each must fail, and the peer's side must go on working.

An attempt returns what it achieved; an empty answer means that it failed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from croft.adapters import seccomp
from croft.compute.worker_messages import FileFailed, GetFile, Status
from croft.errors import PeerMisbehaved
from croft.wire.frames import FrameReader
from support.boxes import NAMESPACE_KINDS, Peer, open_peer, worker_spec
from support.cells import SECRET, Cell
from support.worker_process import arguments

COLUMN = 0 if platform.machine() == "x86_64" else 1


in_namespaces = pytest.mark.parametrize("cell", NAMESPACE_KINDS, indirect=True, scope="module")
"""What only a box with namespaces promises."""


def last_words(cell: Cell, function: Callable[..., object], *, is_failing: bool = True) -> str:
    """Runs an attempt that may cost the box its life, in a box of its own; returns the cause of death."""

    async def run() -> str:
        with tempfile.TemporaryDirectory(dir=cell.work_dir.parent) as folder:
            async with open_peer(cell.sandbox, Path(folder), name="doomed") as peer:
                outcomes = await peer.run(function, [arguments()])
                assert not is_failing or all(status != Status.OK for _, status, _ in outcomes)
                return (await peer.box.close()).death

    death = cell.run(run())
    assert cell.attempt(readable, []) == []
    return str(death)


# --- files -----------------------------------------------------------------------------------------------------------


def readable(paths: list[str]) -> list[str]:
    got = []
    for path in paths:
        try:
            if os.path.isdir(path):
                os.listdir(path)
            else:
                with open(path, "rb") as file:
                    file.read(1)
        except OSError:
            continue
        got.append(path)
    return got


def test_a_world_readable_file_of_the_host_cannot_be_read(cell: Cell, secret_file: Path) -> None:
    assert cell.attempt(readable, [str(secret_file)]) == []


def test_the_hosts_accounts_keys_and_homes_cannot_be_read(cell: Cell) -> None:
    paths = ["/etc/shadow", "/etc/ssh", "/root", "/home", str(Path.home()), str(Path.home() / ".ssh"), "/var", "/run"]
    allowed = [path for path in paths if any(known.startswith(f"{path}/") for known in worker_spec(None).read_only)]

    assert set(cell.attempt(readable, paths)) <= set(allowed)  # type: ignore[call-overload]


def test_a_folder_that_leads_to_the_runtime_shows_nothing_else(cell: Cell) -> None:
    def seen(home: str) -> list[str]:
        try:
            return sorted(os.listdir(home))
        except OSError:
            return []

    shown = cell.attempt(seen, str(Path.home()))

    assert len(shown) <= 1  # type: ignore[arg-type]


def test_devices_of_the_host_cannot_be_opened(cell: Cell) -> None:
    devices = [str(path) for path in Path("/dev").iterdir() if stat.S_ISBLK(path.stat().st_mode)]

    assert cell.attempt(readable, [*devices, "/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/port"]) == []


def test_nothing_outside_its_folders_can_be_written(cell: Cell, secret_file: Path) -> None:
    def write(paths: list[str]) -> list[str]:
        done = []
        for path in paths:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
            except OSError:
                continue
            done.append(path)
        return done

    paths = ["/usr/x", "/etc/x", "/x", "/dev/x", "/proc/sys/kernel/hostname", str(secret_file), sys.executable]
    assert cell.attempt(write, paths) == []


def test_modes_and_owners_of_the_hosts_files_cannot_be_changed(cell: Cell, secret_file: Path) -> None:
    def change(path: str) -> list[str]:
        done = []
        for attempt in (
            lambda: os.chmod(path, 0o777),
            lambda: os.chown(path, os.getuid(), os.getgid()),
            lambda: os.utime(path, (1, 1)),
            lambda: os.truncate(path, 0),
            lambda: os.unlink(path),
        ):
            try:
                attempt()
            except OSError:
                continue
            done.append(str(attempt))
        return done

    before = secret_file.stat()
    assert cell.attempt(change, str(secret_file)) == []
    assert secret_file.stat() == before


def test_symbolic_links_do_not_lead_get_file_out(cell: Cell, secret_file: Path) -> None:
    def lay_traps(path: str) -> None:
        os.symlink(path, "file")
        os.symlink(os.path.dirname(path), "folder")
        os.symlink("/proc/self/root", "root")

    cell.attempt(lay_traps, str(secret_file))

    async def fetch(path: str) -> object:
        await cell.peer.send(GetFile(path))
        return await cell.peer.receive()

    for path in ("file", "folder/key", f"root{secret_file}", "../key", str(secret_file)):
        assert isinstance(cell.run(fetch(path)), FileFailed)


# --- the peer and other processes ------------------------------------------------------------------------------------


def test_the_peers_environment_cannot_be_seen(cell: Cell) -> None:
    def search(secret: str) -> list[str]:
        found = [name for name, value in os.environ.items() if secret in value]
        try:
            pids = [name for name in os.listdir("/proc") if name.isdigit()]
        except OSError:
            pids = ["1", "self", str(os.getppid())]
        for pid in pids:
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if secret.encode() in file.read():
                        found.append(pid)
            except OSError:
                continue
        return found

    assert cell.attempt(search, SECRET) == []


def test_processes_of_the_host_are_not_listed(cell: Cell) -> None:
    def command_lines() -> list[str]:
        found = []
        for number in range(1, 70_000):
            try:
                with open(f"/proc/{number}/cmdline", "rb") as file:
                    found.append(file.read().decode(errors="replace"))
            except OSError:
                continue
        return [line for line in found if "pytest" in line]

    assert cell.attempt(command_lines) == []


def test_the_peer_cannot_be_signalled(cell: Cell) -> None:
    def signal_peer(pid: int) -> list[int]:
        sent = []
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except OSError:
                continue
            sent.append(number)
        return sent

    child = subprocess.Popen(["sleep", "600"])
    try:
        assert cell.attempt(signal_peer, child.pid) == []
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


@in_namespaces
def test_the_worker_survives_signals_from_its_tasks(cell: Cell) -> None:
    def signal_worker() -> list[int]:
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
            os.kill(1, number)
        return []

    assert cell.attempt(signal_worker) == []


def test_a_task_that_kills_everything_it_can_reach_kills_only_its_box(cell: Cell) -> None:
    def kill_all() -> None:
        os.kill(-1, signal.SIGKILL)
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)

    child = subprocess.Popen(["sleep", "600"])
    try:
        last_words(cell, kill_all)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_the_workers_memory_cannot_be_reached(cell: Cell) -> None:
    def reach() -> list[str]:
        reached = []
        for name in ("mem", "maps", "environ", "fd/0", "root"):
            try:
                os.close(os.open(f"/proc/{os.getppid()}/{name}", os.O_RDONLY))
            except OSError:
                continue
            reached.append(name)
        return reached

    assert cell.attempt(reach) == []


# --- the network -----------------------------------------------------------------------------------------------------


def test_no_family_of_sockets_but_local_ones_can_be_opened(cell: Cell) -> None:
    def open_sockets() -> list[int]:
        opened = []
        for family in range(48):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
                try:
                    socket.socket(family, kind).close()
                except OSError:
                    continue
                if family != socket.AF_UNIX:
                    opened.append(family)
        return opened

    assert cell.attempt(open_sockets) == []


def test_a_server_on_loopback_cannot_be_dialled(cell: Cell) -> None:
    def dial(port: int) -> list[str]:
        try:
            socket.create_connection(("127.0.0.1", port), 2).close()
        except OSError:
            return []
        return ["connected"]

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert cell.attempt(dial, server.getsockname()[1]) == []


def test_local_sockets_of_the_host_cannot_be_dialled(cell: Cell, tmp_path: Path) -> None:
    def dial(addresses: list[str]) -> list[str]:
        connected = []
        for address in addresses:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(address)
            except OSError:
                continue
            connected.append(address)
        return connected

    path, abstract = str(tmp_path / "s"), f"\0croft-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as by_name:
        by_path.bind(path)
        by_path.listen()
        Path(path).chmod(0o777)
        by_name.bind(abstract)
        by_name.listen()
        assert cell.attempt(dial, [path, abstract]) == []


# --- the kernel ------------------------------------------------------------------------------------------------------


def call_kernel(number: int, *args: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in args))
    return "" if result == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS) else f"returned {result}"


def test_calls_newer_than_the_filter_are_refused(cell: Cell) -> None:
    assert cell.attempt(call_kernel, seccomp.NEWEST_CALL + 1, 0, 0, 0) == ""


@pytest.mark.parametrize("flag", [0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x02000000])
def test_a_clone_into_new_namespaces_is_refused(cell: Cell, flag: int) -> None:
    assert cell.attempt(call_kernel, seccomp._CLONE[COLUMN], flag | signal.SIGCHLD, 0, 0, 0, 0) == ""


def test_typing_into_a_terminal_is_refused(cell: Cell) -> None:
    assert cell.attempt(call_kernel, seccomp._IOCTL[COLUMN], 0, 0x5412, 0) == ""


def test_other_users_cannot_be_become(cell: Cell) -> None:
    def become() -> list[str]:
        done = []
        for attempt in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0)):
            try:
                attempt()
            except OSError:
                continue
            done.append("became")
        libc = ctypes.CDLL(None)
        return done if libc.prctl(39, 0, 0, 0, 0) == 1 else [*done, "programs may gain rights"]

    assert cell.attempt(become) == []


def test_limits_cannot_be_raised(cell: Cell) -> None:
    def raise_limits() -> list[int]:
        raised = []
        for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
            try:
                resource.setrlimit(kind, (resource.getrlimit(kind)[1] + 1,) * 2)
            except (OSError, ValueError):
                continue
            raised.append(kind)
        return raised

    assert cell.attempt(raise_limits) == []


def test_control_groups_cannot_be_left(cell: Cell) -> None:
    def leave() -> list[str]:
        left = []
        for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"):
            try:
                with open(f"{folder}/cgroup.procs", "w") as file:
                    file.write("0")
            except OSError:
                continue
            left.append(folder)
        return left

    assert cell.attempt(leave) == []


# --- using everything up ---------------------------------------------------------------------------------------------


def test_a_fork_bomb_is_bounded(cell: Cell) -> None:
    def explode() -> int:
        children = 0
        try:
            while children < 500:
                if os.fork() == 0:
                    time.sleep(600)
                children += 1
        except OSError:
            pass
        return children

    assert int(str(cell.attempt(explode))) <= worker_spec(None).processes_max


def test_a_fork_bomb_that_forks_on_leaves_nothing(cell: Cell) -> None:
    def explode() -> str:
        until = time.monotonic() + 0.3
        if os.fork() == 0:
            os.setsid()
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        while time.monotonic() < until:
            pass
        return ""

    if cell.kind == "landlock":
        # If the worker cannot get rid of it, its keeper does, and the box ends.
        assert last_words(cell, explode, is_failing=False) in ("", "the program ended with exit code 71")
    else:
        assert cell.attempt(explode) == ""


def test_a_memory_bomb_hurts_only_the_box(cell: Cell) -> None:
    def explode() -> str:
        held = []
        try:
            for _ in range(100):
                held.append(b"x" * (50 << 20))
        except MemoryError:
            os._exit(9)
        return ""

    death = last_words(cell, explode)

    assert death in ("", "memory limit 256 MiB exceeded")


def test_a_memory_bomb_of_many_processes_hurts_only_the_box(cell: Cell) -> None:
    def explode() -> None:
        for _ in range(10):
            if os.fork() == 0:
                held = mmap.mmap(-1, 100 << 20)
                for page in range(0, len(held), mmap.PAGESIZE):
                    held[page] = 1
                time.sleep(600)
        time.sleep(3)
        os._exit(1)

    assert last_words(cell, explode) in ("", "memory limit 256 MiB exceeded")


def test_a_bomb_of_memory_files_hurts_only_the_box(cell: Cell) -> None:
    def explode() -> None:
        held = []
        try:
            for _ in range(100):
                held.append(os.memfd_create("x"))
                os.write(held[-1], b"x" * (10 << 20))
        except OSError:
            pass
        os._exit(len(held))

    assert last_words(cell, explode) in ("", "memory limit 256 MiB exceeded")


def test_filling_the_scratch_folder_is_bounded(cell: Cell) -> None:
    def fill() -> None:
        try:
            for number in range(200):
                with open(f"{os.environ['TMPDIR']}/{number}", "wb") as file:
                    file.write(b"x" * (1 << 20))
        except OSError:
            os._exit(1)
        time.sleep(30)

    assert last_words(cell, fill) in ("", "disk limit 16 MiB of the scratch folder exceeded")


def test_filling_the_work_folder_with_files_that_have_no_name_ends_the_box(cell: Cell) -> None:
    def fill() -> None:
        held = []
        for number in range(40):
            held.append(os.open(f"{number}", os.O_WRONLY | os.O_CREAT))
            os.unlink(f"{number}")
            os.write(held[-1], b"x" * (1 << 20))
        time.sleep(30)

    assert last_words(cell, fill) == "disk limit 16 MiB of /job exceeded"


def test_folders_nested_without_end_end_the_box(cell: Cell) -> None:
    def nest() -> None:
        for _ in range(100):
            os.mkdir("x")
            os.chdir("x")
        time.sleep(30)

    assert "nested deeper" in last_words(cell, nest)


def test_empty_files_without_end_are_bounded(cell: Cell) -> None:
    def litter() -> None:
        for number in range(1_000_000):
            os.close(os.open(f"{os.environ['TMPDIR']}/{number}", os.O_WRONLY | os.O_CREAT))

    assert "exceeded" in last_words(cell, litter) or cell.kind == "namespaces and cgroup"


# --- against the protocol --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\xc1\xc1", b"\x7f" * 4096])
def test_a_program_that_breaks_the_protocol_is_found_out_and_closed(cell: Cell, said: bytes) -> None:
    program = f"import os, sys, time; os.write(int(sys.argv[1]), {said!r}); time.sleep(60)"
    spec = replace(worker_spec(None, "liar"), argv=(sys.executable, "-IS", "-c", program, "{fd}"))

    async def run() -> None:
        box = await cell.sandbox.open(spec)
        try:
            with pytest.raises(PeerMisbehaved):
                await Peer(box).receive()
        finally:
            await box.close()

    cell.run(run())
    assert cell.attempt(readable, []) == []


def test_a_program_that_talks_without_end_is_read_only_as_far_as_wanted(cell: Cell) -> None:
    program = "import os, sys\nwhile True: os.write(int(sys.argv[1]), b'x' * 65536)"
    spec = replace(worker_spec(None, "talker"), argv=(sys.executable, "-IS", "-c", program, "{fd}"))

    async def run() -> None:
        box = await cell.sandbox.open(spec)
        for _ in range(10):
            assert 0 < len(await box.read(1000)) <= 1000
        await box.close()

    cell.run(run())


def test_a_program_that_never_reads_does_not_hold_up_its_end(cell: Cell) -> None:
    program = "import os, sys, time; os.write(int(sys.argv[1]), b'x'); time.sleep(600)"
    spec = replace(worker_spec(None, "deaf"), argv=(sys.executable, "-IS", "-c", program, "{fd}"))

    async def run() -> None:
        box = await cell.sandbox.open(spec)
        writing = asyncio.create_task(box.write(b"x" * (8 << 20)))
        await asyncio.sleep(0.05)
        assert not writing.done()
        await box.close()
        await asyncio.gather(writing, return_exceptions=True)

    cell.run(run())


def test_the_largest_frame_is_bounded_before_it_is_buffered() -> None:
    with pytest.raises(PeerMisbehaved):
        FrameReader(step="test").feed(b"\x7f\xff\xff\xff")
