"""A running box as the event loop sees it: one socket, the end of what it wrote to stderr, its usage and its end.

What makes a box tight differs (`bubblewrap_sandbox`, `landlock_sandbox`, `plain_process`); that part only prepares a
`Launch`. Processes are started by one thread per sandbox that lives as long as the sandbox: the kernel kills a box when
the *thread* that started it ends (PR_SET_PDEATHSIG), and starting must not hold up the event loop.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from croft.adapters.cgroup import ControlGroup
from croft.adapters.doorway import SocketDoorway
from croft.adapters.process_tree import go_on_below, kill_with_descendants, stop_below
from croft.adapters.watchdog import FOLDER_DEPTH_MAX, Watch, Watchdog
from croft.errors import ConnectionLost, Failed
from croft.model.isolation import Isolation
from croft.ports import BoxSpec, BoxUsage

START_SILENT_S_MAX = 1.0
"""`open` waits for the first sign of life; a program that says nothing for so long counts as started."""
END_S_MAX = 0.5
"""How long a box whose socket has closed may take to end by itself, so that its exit code is known."""
TRY_S_MAX = 5.0
ERROR_BYTES_MAX = 4 << 10
WORK_FOLDER = "/job"
MINIMAL_PATH = "/usr/local/bin:/usr/bin:/bin"
LAUNCH_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""All that the program outside the box gets: what it has, code inside could read from /proc/1/environ."""
BOX_FOLDER_PREFIX = "croft-box-"
OPEN_FILES_MAX = 1024
LOCKED_MEMORY_BYTES_MAX = 64 << 10
NICENESS = 19


@dataclass(slots=True)
class Launch:
    """How to start one box. `cleanups` run, last first, once nothing of it runs any more."""

    argv: list[str] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    """Passed on, and closed here once it runs; the inside of the socket is not among them."""
    held: list[int] = field(default_factory=list)
    """Kept open here until the box is closed."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the first program outside the box, besides LAUNCH_ENVIRONMENT."""
    keeper_s: float = 0.0
    """How long the first program may take to clear the box away by itself once the held descriptors are closed."""
    group: ControlGroup | None = None
    cleanups: list[Callable[[], None]] = field(default_factory=list)
    scratch: Path | None = None
    """A folder of the host that serves as the box's /tmp, if it has no /tmp of its own."""
    watch: Watch | None = None
    process: subprocess.Popen[bytes] | None = None
    outside: socket.socket | None = None
    doorway: socket.socket | None = None
    errors: int = -1

    def remember(self, data: bytes) -> int:
        """An inheritable descriptor from which `data` can be read."""
        descriptor = os.memfd_create("croft")
        self.descriptors.append(descriptor)
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def undo(self) -> None:
        """Kills what runs and frees everything. Blocks until it is gone."""
        if self.watch is not None:
            self.watch.end()
        for descriptor in self.held:
            os.close(descriptor)
        self.held.clear()
        if self.group is not None:
            with contextlib.suppress(OSError):
                self.group.kill()
        if self.process is not None and self.keeper_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.keeper_s)
        if self.process is not None and self.process.poll() is None:
            kill_with_descendants(self.process.pid)
            self.process.wait()
        for end in (self.outside, self.doorway):
            if end is not None:
                end.close()
        if self.errors >= 0:
            os.close(self.errors)
            self.errors = -1
        while self.cleanups:
            with contextlib.suppress(OSError):
                self.cleanups.pop()()


class ProcessSandbox(abc.ABC):
    """What all sandboxes made of processes share: starting a box off the event loop, and handing it over."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._watchdog = Watchdog()
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="croft-box")

    def isolation(self) -> Isolation:
        """What this machine can hold, found by trying."""
        return self._isolation

    async def open(self, spec: BoxSpec) -> BoxProcess:
        """Starts a box and waits for its first sign of life.

        Raises:
            Failed: it cannot be started; the message holds what it said.
        """
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(self._starter, self._start, spec)
        try:
            launch = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._discard)
            raise
        box = BoxProcess(self, spec, launch)
        try:
            await box.wait_started()
        except BaseException:
            await asyncio.shield(box.close())
            raise
        return box

    def try_out(self, spec: BoxSpec) -> str:
        """Runs a program that ends by itself. Blocks; returns "" if it ended well, else what went wrong."""
        try:
            launch = self._start(spec)
        except Failed as error:
            return error.message
        assert launch.process is not None, "it was started"
        try:
            code = launch.process.wait(TRY_S_MAX)
            said = os.read(launch.errors, ERROR_BYTES_MAX) if code else b""
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            launch.undo()
        return said.decode(errors="replace").strip() or (f"exit code {code}" if code else "")

    def _discard(self, starting: asyncio.Future[Launch]) -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._starter.submit(starting.result().undo)

    def _start(self, spec: BoxSpec) -> Launch:
        launch = Launch()
        inside: socket.socket | None = None
        error_end = -1
        try:
            launch.outside, inside = socket.socketpair()
            launch.outside.setblocking(False)
            launch.errors, error_end = os.pipe()
            os.set_blocking(launch.errors, False)
            numbers = {"{fd}": inside.fileno()}
            if spec.has_doorway:
                launch.doorway, doorway_inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                launch.doorway.setblocking(False)
                numbers["{doorway}"] = doorway_inside.detach()
                launch.descriptors.append(numbers["{doorway}"])
            argv = [str(numbers.get(argument, argument)) for argument in spec.argv]
            self._prepare(replace(spec, argv=tuple(argv)), launch, inside.fileno())
            launch.process = subprocess.Popen(
                launch.argv,
                pass_fds=[inside.fileno(), *launch.descriptors],
                env={**LAUNCH_ENVIRONMENT, **launch.environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=error_end,
                stderr=error_end,
                start_new_session=True,
            )
            launch.watch = self._watchdog.watch(self._watch(spec, launch))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            launch.undo()
            raise Failed(f"box {spec.name} cannot be started: {error}") from error
        finally:
            if inside is not None:
                inside.close()
            for descriptor in (error_end, *launch.descriptors):
                if descriptor >= 0:
                    os.close(descriptor)
            launch.descriptors.clear()
        return launch

    @abc.abstractmethod
    def _prepare(self, spec: BoxSpec, launch: Launch, inside: int) -> None:
        """Fills in `launch`. `inside` is the descriptor of the program's end of the socket. Raises OSError."""

    def _watch(self, spec: BoxSpec, launch: Launch) -> Watch:
        """What the watchdog must look after."""
        assert launch.process is not None, "it was just started"
        return Watch(
            pid=launch.process.pid,
            memory_bytes_max=None if launch.group is not None else spec.memory_bytes,
            folder=spec.work_dir,
            folder_bytes_max=spec.work_bytes,
            folder_files_max=spec.work_files_max,
        )


class BoxProcess:
    """A running program in isolation, with one socket to it. Everything happens on the loop that opened it."""

    def __init__(self, sandbox: ProcessSandbox, spec: BoxSpec, launch: Launch) -> None:
        assert launch.outside is not None and launch.process is not None, "it runs"
        self._sandbox = sandbox  # keeps the thread alive that started the process
        self._spec = spec
        self._launch = launch
        self._process = launch.process
        self._socket = launch.outside
        self._descriptor = launch.outside.fileno()
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._outgoing: deque[memoryview] = deque()
        self._writer: asyncio.Future[None] | None = None
        self._has_ended = False
        self._errors = bytearray()
        self._closing: asyncio.Task[BoxUsage] | None = None
        self._is_held = False
        self._loop.add_reader(launch.errors, self._read_errors)
        self.doorway = None if launch.doorway is None else SocketDoorway(launch.doorway)

    # --- the socket ---

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes from the program; `b""` once it has ended. Safe to cancel."""
        while not self._has_ended and self._closing is None:
            try:
                received = self._socket.recv(size_bytes_max)
            except (BlockingIOError, InterruptedError):
                await self._readable()
            except OSError:
                self._has_ended = True
            else:
                # Taken only here, after the wait: a cancelled wait has taken nothing.
                if received:
                    return received
                self._has_ended = True
        return b""

    async def write(self, data: bytes | memoryview) -> None:
        """Hands over all of `data`, also if cancelled midway, waiting while the program does not keep up.

        Raises:
            ConnectionLost: the program has ended.
        """
        if self._has_ended or self._closing is not None:
            raise ConnectionLost(f"box {self._spec.name} has ended")
        if len(data):
            self._outgoing.append(memoryview(data).cast("B"))
        if self._writer is None:
            self._send()
        while self._outgoing:
            if self._writer is None:
                self._writer = self._loop.create_future()
                self._loop.add_writer(self._descriptor, self._send)
            await asyncio.shield(self._writer)
        if self._has_ended or self._closing is not None:
            raise ConnectionLost(f"box {self._spec.name} has ended")

    def _send(self) -> None:
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing[0])
                if sent < len(self._outgoing[0]):
                    self._outgoing[0] = self._outgoing[0][sent:]
                else:
                    self._outgoing.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # What it wrote before it ended can still be read; only writing is over.
            self._outgoing.clear()
            self._end_writing()
            self._has_ended = self._has_ended or not self._has_unread()
            return
        self._end_writing()

    def _has_unread(self) -> bool:
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _end_writing(self) -> None:
        if self._writer is not None:
            self._loop.remove_writer(self._descriptor)
            if not self._writer.done():
                self._writer.set_result(None)
            self._writer = None

    async def _readable(self) -> None:
        self._reader = self._loop.create_future()
        self._loop.add_reader(self._descriptor, _wake, self._reader)
        try:
            await self._reader
        finally:
            self._reader = None
            if self._closing is None:
                self._loop.remove_reader(self._descriptor)

    # --- beginning and end ---

    async def wait_started(self) -> None:
        """Returns at the first sign of life. Raises Failed if the program ends without one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._readable(), START_SILENT_S_MAX)
        try:
            is_over = self._socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        if is_over:
            self._has_ended = True
            await self.close()
            said = self._errors.decode(errors="replace").strip()
            raise Failed(f"box {self._spec.name} did not start: {said or self._final_death}")

    def usage(self) -> BoxUsage:
        """What it has used so far, read from outside it."""
        if self._closing is not None and self._closing.done() and not self._closing.cancelled():
            return self._closing.result()
        return self._measure()

    async def hold(self, is_held: bool) -> None:
        """Stops everything inside where it is, or lets it go on. Idempotent."""
        if is_held != self._is_held and self._closing is None:
            self._is_held = is_held
            await asyncio.to_thread(self._hold, is_held)

    def _hold(self, is_held: bool) -> None:
        if self._launch.group is not None:
            with contextlib.suppress(OSError):
                self._launch.group.hold(is_held)
                return
        if is_held:
            stop_below(self._process.pid)
        else:
            go_on_below(self._process.pid)

    async def limit(self, cpus: float) -> None:
        """Gives the box so many processors from now on, if it has a control group."""
        if self._launch.group is not None and self._closing is None:
            self._launch.group.limit_cpus(cpus)

    async def close(self) -> BoxUsage:
        """Kills everything inside, frees what it held and returns the final usage. Idempotent."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name=f"box.{self._spec.name}.close")
        return await asyncio.shield(self._closing)

    @property
    def error_text(self) -> str:
        """The end of what the program itself wrote to stdout and stderr."""
        return self._errors.decode(errors="replace")

    _final_death = ""

    async def _close(self) -> BoxUsage:
        self._loop.remove_reader(self._descriptor)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._outgoing.clear()
        self._end_writing()
        if self.doorway is not None:
            self.doorway.close()
        usage = await asyncio.to_thread(self._end)
        self._has_ended = True
        return usage

    def _end(self) -> BoxUsage:
        """Blocks until nothing is left. Runs off the loop, after the loop has let go of the descriptors."""
        process = self._process
        if self._has_ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S_MAX)
        process.poll()
        self._loop.call_soon_threadsafe(self._loop.remove_reader, self._launch.errors)
        usage = self._measure()
        self._final_death = usage.death
        self._read_errors()
        self._launch.undo()
        return usage

    def _measure(self) -> BoxUsage:
        group, watch = self._launch.group, self._launch.watch
        assert watch is not None, "it runs"
        if group is None:
            return BoxUsage(watch.cpu_s, watch.memory_peak_bytes, self._death())
        return BoxUsage(group.cpu_s(), group.memory_peak_bytes(), self._death(), self._limits(group))

    def _limits(self, group: ControlGroup) -> str:
        reached: list[str] = []
        if kills := group.memory_kills():
            reached.append(f"{memory_exceeded(self._spec.memory_bytes)} {kills} times")
        if refusals := group.process_refusals():
            reached.append(f"limit of {self._spec.processes_max} processes reached {refusals} times")
        return ", ".join(reached)

    def _death(self) -> str:
        group, watch = self._launch.group, self._launch.watch
        if watch is not None and watch.reason:
            return watch.reason
        code = self._process.poll()
        if code is None or code == 0:
            return ""
        if group is not None and group.memory_kills():
            return memory_exceeded(self._spec.memory_bytes)
        # A shell's way to tell of a signal, which bubblewrap and our launcher follow.
        number = -code if code < 0 else code - 128
        if number in signal.valid_signals():
            return f"killed by {signal.Signals(number).name}"
        return f"the program ended with exit code {code}"

    def _read_errors(self) -> None:
        try:
            printed = os.read(self._launch.errors, 1 << 16)
        except OSError:
            return
        if not printed:
            self._loop.remove_reader(self._launch.errors)
        self._errors += printed
        del self._errors[: max(0, len(self._errors) - ERROR_BYTES_MAX)]


def device_variable(name: str) -> str:
    """The variable that says inside a box where a device is."""
    return "CROFT_DEVICE_" + name.upper().replace("-", "_")


def is_device_node(place: str) -> bool:
    """Whether a lent device is a node, which is read and written, rather than a file, which is read."""
    return stat.S_ISCHR(Path(place).stat().st_mode)


def memory_exceeded(limit_bytes: int) -> str:
    """The cause of death of a box that used too much memory."""
    return f"memory limit {limit_bytes >> 20} MiB exceeded"


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def make_owned_below(folder: Path, uid: int) -> None:
    """Gives a folder and all in it to `uid`, so that the box can write there. Follows no links. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _give(descriptor, uid, FOLDER_DEPTH_MAX)
    finally:
        os.close(descriptor)


def _give(descriptor: int, uid: int, depth_left: int) -> None:
    # An earlier box may have prepared this folder: it is as hostile as any.
    if depth_left == 0:
        raise OSError(errno.ELOOP, f"folders are nested deeper than {FOLDER_DEPTH_MAX}")
    os.chown(descriptor, uid, uid)
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                try:
                    _give(below, uid, depth_left - 1)
                finally:
                    os.close(below)
            else:
                os.chown(entry.name, uid, uid, dir_fd=descriptor, follow_symlinks=False)


def box_folder_parents() -> Sequence[Path]:
    """Where folders of boxes are made: first where those that are only mounted on are, then the others."""
    run, temporary = Path("/run"), Path(tempfile.gettempdir())
    return (run, temporary) if run.is_dir() and os.geteuid() == 0 else (temporary,)


def box_folder(parent: Path | None = None) -> Path:
    """A fresh private folder of the host. Its name says whose it is, should nobody live to remove it."""
    return Path(tempfile.mkdtemp(prefix=f"{BOX_FOLDER_PREFIX}{os.getpid()}-", dir=parent))


def scratch_folder(launch: Launch) -> Path:
    """A fresh private folder of the host that is removed with the box."""
    folder = box_folder()
    launch.cleanups.append(lambda: remove_folder(folder))
    return folder


def remove_folder(folder: Path) -> None:
    """Removes a folder that a box could write to, however deep it is nested. Blocks. Raises OSError."""
    remove, open_up = ("rm", "-rf", "--"), ("chmod", "-R", "u+rwX", "--")
    # Where the peer is not root, what the code inside closed to itself is closed to the peer too.
    for command in (remove, open_up, remove):
        subprocess.run([*command, folder], env=LAUNCH_ENVIRONMENT, stderr=subprocess.DEVNULL)
        if not os.path.lexists(folder):
            return
    raise OSError(errno.EIO, "cannot be removed", str(folder))


def resource_limits(spec: BoxSpec) -> Sequence[str]:
    """Arguments for prlimit(1) that hold in every box."""
    return (
        f"--nofile={OPEN_FILES_MAX}",
        "--core=0",
        f"--fsize={max(spec.work_bytes, spec.scratch_bytes)}",
        f"--memlock={LOCKED_MEMORY_BYTES_MAX}",
        "--msgqueue=0",
    )
