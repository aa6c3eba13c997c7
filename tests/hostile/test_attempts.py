"""D8: attempts to get out of a box, one by one, each on every grade that holds foreign code; and what stopped it.

What each attempt meets is in the table of docs/isolation.md, which `python tests/hostile/test_attempts.py` writes anew.
Attempts that use something up, or cost the box its life, are in test_escapes.py.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from croft.adapters import seccomp
from support.boxes import CONFINING_KINDS, sandbox_of
from support.cells import SECRET, SECRET_VARIABLE, Cell

COLUMN = 0 if platform.machine() == "x86_64" else 1
TABLE = Path(__file__).parents[2] / "docs" / "isolation.md"
BEGIN, END = "<!-- attempts: begin -->", "<!-- attempts: end -->"
ATTEMPTS_MIN = 60
STOPPED_BY = {
    "EPERM": "no right, or call filter",
    "ENOSYS": "call filter",
    "EACCES": "no right to it",
    "ENOENT": "not there",
    "ENOTDIR": "not there",
    "EROFS": "read-only",
    "EAFNOSUPPORT": "socket filter",
    "ESRCH": "no such process",
    "EINVAL": "refused by kernel",
    "EAGAIN": "limit on processes",
    "ENOMEM": "limit on memory",
    "EFBIG": "limit on files",
    "EMFILE": "limit on open files",
    "ENOSPC": "limit on disk",
    "ENXIO": "not there",
    "ENODEV": "not there",
    "EISDIR": "not there",
    "ECONNREFUSED": "nobody listens",
    "nothing": "nothing seen",
}

Facts = dict[str, str]
Try = Callable[[Facts], object]


@dataclass(frozen=True)
class Attempt:
    """What foreign code tries; `run` returns what it got, or nothing, or raises OSError."""

    area: str
    what: str
    run: Try


# --- what attempts are made of; all of it runs in the box ------------------------------------------------------------


def outcome(run: Try, facts: Facts) -> str:
    try:
        got = run(facts)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (MemoryError, OverflowError):
        return "ENOMEM"
    except ValueError:
        return "EINVAL"
    return f"got {got!r}" if got else "nothing"


def trying(run: Try, facts: Facts) -> Callable[[], str]:
    """What to run in the box, whole: nothing of this file is to be found there."""
    return lambda: outcome(run, facts)


def read(path: str) -> Try:
    def run(facts: Facts) -> object:
        with open(path.format(**facts), "rb") as file:
            return file.read(100)

    return run


def listed(path: str) -> Try:
    """Names that are in a folder, but for those that lead to the runtime."""

    def run(facts: Facts) -> object:
        return [name for name in os.listdir(path) if f"{path}/{name}/" not in facts["allowed"]]

    return run


def write(path: str, mode: int = os.O_WRONLY | os.O_CREAT) -> Try:
    def run(facts: Facts) -> object:
        descriptor = os.open(path.format(**facts), mode, 0o644)
        try:
            return os.write(descriptor, b"0")
        finally:
            os.close(descriptor)

    return run


def kernel(number: int | None, *args: int) -> Try:
    def run(facts: Facts) -> object:
        if number is None:
            raise OSError(errno.ENOSYS, "not on this machine")
        libc = ctypes.CDLL(None, use_errno=True)
        ctypes.set_errno(0)
        if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in args)) == -1:
            raise OSError(ctypes.get_errno(), "refused")
        return "called"

    return run


def call(name: str, *args: int) -> Try:
    return kernel(seccomp._DENIED[name][COLUMN], *(args or (0, 0, 0, 0, 0)))


def opened(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> Try:
    def run(facts: Facts) -> object:
        socket.socket(family, kind, protocol).close()
        return "a socket"

    return run


def secret_in(paths: str) -> Try:
    """The peer's secret in a file of some process."""

    def run(facts: Facts) -> object:
        found = []
        for process in ("self", "1", str(os.getppid()), facts["peer"], "thread-self"):
            try:
                with open(paths.format(process), "rb") as file:
                    if facts["secret"].encode() in file.read(1 << 20):
                        found.append(process)
            except OSError:
                continue
        return found

    return run


def on_file(change: Callable[[str], object]) -> Try:
    def run(facts: Facts) -> object:
        change(facts["file"])
        return "changed"

    return run


def sent(target: str, number: int) -> Try:
    def run(facts: Facts) -> object:
        os.kill(int(facts[target]), number)
        return "sent"

    return run


def raised_limit(kind: int) -> Try:
    def run(facts: Facts) -> object:
        resource.setrlimit(kind, (resource.getrlimit(kind)[1] + 1,) * 2)
        return "raised"

    return run


def become(change: Callable[[], object]) -> Try:
    def run(facts: Facts) -> object:
        change()
        return "became"

    return run


def setuid_program(facts: Facts) -> object:
    copy = f"{os.environ['TMPDIR']}/rights"
    try:
        with open("/usr/bin/id", "rb") as source, open(copy, "wb") as target:
            target.write(source.read())
        os.chmod(copy, 0o4755)
        got = subprocess.run([copy, "-u"], capture_output=True, text=True, check=False).stdout.strip()
    finally:
        if os.path.exists(copy):
            os.unlink(copy)
    return got == "0"


def gained_rights(facts: Facts) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 0, 0, 0, 0)
    return libc.prctl(39, 0, 0, 0, 0) != 1


def dialled(facts: Facts) -> object:
    socket.create_connection(("127.0.0.1", int(facts["port"])), 2).close()
    return "connected"


def dialled_locally(address: str) -> Try:
    def run(facts: Facts) -> object:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address.format(**facts).replace("@", "\0"))
        return "connected"

    return run


def mapped(facts: Facts) -> object:
    held = mmap.mmap(-1, 1 << 40)
    held[0] = 1
    return "a terabyte"


def wrote_much(facts: Facts) -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = f"{os.environ['TMPDIR']}/large"
    try:
        with open(path, "wb") as file:
            for _ in range(64):
                file.write(b"x" * (1 << 20))
                file.flush()
    finally:
        os.unlink(path)
    return "64 MiB"


def opened_many(facts: Facts) -> object:
    held = []
    try:
        for _ in range(100_000):
            held.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for descriptor in held:
            os.close(descriptor)
    return "descriptors"


def locked_memory(facts: Facts) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    held = mmap.mmap(-1, 32 << 20)
    if libc.mlock(ctypes.addressof(ctypes.c_char.from_buffer(held)), len(held)):
        raise OSError(ctypes.get_errno(), "refused")
    return "locked"


def device(name: str) -> Try:
    return read(f"/dev/{name}")


def kill_everybody_outside(facts: Facts) -> object:
    os.killpg(int(facts["group"]), 0)
    return "reached"


FILES = [
    *[Attempt("files", f"read {path}", read(path)) for path in ("/etc/shadow", "/etc/ssh/ssh_host_ed25519_key")],
    *[Attempt("files", f"list {path}", listed(path)) for path in ("/root", "/home", "/var", "/run", "/etc/ssl")],
    Attempt("files", "read a file of the peer that everybody may read", read("{file}")),
    Attempt("files", "read it through /proc/self/root", read("/proc/self/root{file}")),
    Attempt("files", "read it through the root of the first process", read("/proc/1/root{file}")),
    Attempt("files", "read it through the peer's own root", read("/proc/{peer}/root{file}")),
    *[
        Attempt("files", f"write {path}", write(path))
        for path in ("/usr/bin/sh", "/etc/passwd", "/new", "/dev/new", "/lib/x.so")
    ],
    Attempt("files", "write into a file of the peer", write("{file}", os.O_WRONLY)),
    Attempt("files", "empty a file of the peer", on_file(lambda path: os.truncate(path, 0))),
    Attempt("files", "remove a file of the peer", on_file(os.unlink)),
    Attempt("files", "change the mode of a file of the peer", on_file(lambda path: os.chmod(path, 0o777))),
    Attempt("files", "change the owner of a file of the peer", on_file(lambda path: os.chown(path, 0, 0))),
    Attempt("files", "link a file of the peer", on_file(lambda path: os.link(path, f"{os.environ['TMPDIR']}/link"))),
    Attempt(
        "files", "make a device", become(lambda: os.mknod(f"{os.environ['TMPDIR']}/disk", 0o60600, os.makedev(8, 0)))
    ),
    *[Attempt("files", f"open /dev/{name}", device(name)) for name in ("mem", "kmsg", "port", "kvm", "sda", "fuse")],
]
KEYS = [
    Attempt("keys", "find the peer's secret in an environment", secret_in("/proc/{}/environ")),
    Attempt("keys", "find it in a command line", secret_in("/proc/{}/cmdline")),
    Attempt("keys", "find it in memory", secret_in("/proc/{}/mem")),
    *[Attempt("keys", f"the kernel's keys: {name}", call(name)) for name in ("keyctl", "add_key", "request_key")],
]
PROC = [
    *[
        Attempt("/proc", f"write {path}", write(path, os.O_WRONLY))
        for path in (
            *("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"),
            *("/proc/sys/kernel/hostname", "/proc/self/uid_map", "/proc/1/oom_score_adj"),
        )
    ],
    Attempt("/proc", "read /proc/kcore", read("/proc/kcore")),
    Attempt("/proc", "read the memory map of the peer", read("/proc/{peer}/maps")),
    Attempt("/proc", "leave the control group", write("/sys/fs/cgroup/pids/cgroup.procs", os.O_WRONLY)),
    Attempt("/proc", "write to /sys", write("/sys/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY)),
]
NETWORK = [
    *[
        Attempt("network", f"a socket of {name}", opened(family, kind))
        for name, family, kind in (
            *(
                ("IPv4, TCP", 2, socket.SOCK_STREAM),
                ("IPv4, UDP", 2, socket.SOCK_DGRAM),
                ("IPv6", 10, socket.SOCK_STREAM),
            ),
            *(("raw packets", 2, socket.SOCK_RAW), ("whole frames", 17, socket.SOCK_RAW)),
            *(("netlink", 16, socket.SOCK_RAW), ("virtual machines", 40, socket.SOCK_STREAM)),
            *(("Bluetooth", 31, socket.SOCK_RAW), ("the kernel's ciphers", 38, socket.SOCK_SEQPACKET)),
            *(("CAN", 29, socket.SOCK_RAW), ("express data path", 44, socket.SOCK_RAW)),
        )
    ],
    Attempt("network", "dial a server on the loopback interface", dialled),
    Attempt("network", "dial a local socket by its path", dialled_locally("{path}")),
    Attempt("network", "dial a local socket by its abstract name", dialled_locally("@{name}")),
]
CALLS = [
    *[
        Attempt("other processes", name, call(name))
        for name in ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise")
    ],
    *[
        Attempt("mounts", name, call(name))
        for name in (
            *("mount", "umount2", "pivot_root", "chroot", "fsopen", "open_tree", "move_mount", "mount_setattr"),
            *("name_to_handle_at", "open_by_handle_at"),
        )
    ],
    Attempt("namespaces", "unshare", call("unshare", 0x10000000)),
    Attempt("namespaces", "setns", call("setns")),
    *[
        Attempt("namespaces", f"clone into {name}", kernel(seccomp._CLONE[COLUMN], flag | signal.SIGCHLD, 0, 0, 0, 0))
        for name, flag in (("a user", 0x10000000), ("mounts", 0x00020000), ("a network", 0x40000000))
    ],
    *[
        Attempt("the machine", name, call(name))
        for name in (
            *("init_module", "finit_module", "kexec_load", "reboot", "swapon", "acct", "settimeofday", "clock_settime"),
            *("syslog", "sethostname", "quotactl", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup"),
        )
    ],
    Attempt("the machine", "a call newer than the filter", kernel(seccomp.NEWEST_CALL + 1, 0, 0, 0)),
    Attempt("the machine", "type into a terminal", kernel(seccomp._IOCTL[COLUMN], 0, 0x5412, 0)),
]
RIGHTS = [
    Attempt("rights", "become root", become(lambda: os.setuid(0))),
    Attempt("rights", "become root's group", become(lambda: os.setgid(0))),
    Attempt("rights", "take on groups", become(lambda: os.setgroups([0]))),
    Attempt("rights", "run a setuid program of one's own", setuid_program),
    Attempt("rights", "let programs gain rights", gained_rights),
    Attempt("rights", "a higher priority", become(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))),
    Attempt(
        "rights", "a real-time priority", become(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
    ),
    Attempt("rights", "more processes", raised_limit(resource.RLIMIT_NPROC)),
    Attempt("rights", "larger files", raised_limit(resource.RLIMIT_FSIZE)),
    Attempt("rights", "more open files", raised_limit(resource.RLIMIT_NOFILE)),
]
SIGNALS = [
    Attempt("signals", "end the peer", sent("peer", signal.SIGTERM)),
    Attempt("signals", "see whether a process of the peer lives", sent("child", 0)),
    Attempt("signals", "kill a process of the peer", sent("child", signal.SIGKILL)),
    Attempt("signals", "signal the peer's process group", kill_everybody_outside),
]
USING_UP = [
    Attempt("using up", "map a terabyte", mapped),
    Attempt("using up", "lock memory", locked_memory),
    Attempt("using up", "a file larger than the scratch folder", wrote_much),
    Attempt("using up", "a hundred thousand open files", opened_many),
]
ATTEMPTS = [*FILES, *KEYS, *PROC, *NETWORK, *CALLS, *RIGHTS, *SIGNALS, *USING_UP]


# --- outside ---------------------------------------------------------------------------------------------------------


class Surroundings:
    """What there is outside a box to be got at."""

    def __init__(self, folder: Path) -> None:
        for parent in (folder, *folder.parents[:3]):
            if parent.stat().st_uid == os.getuid():
                parent.chmod(parent.stat().st_mode | 0o055)
        self.file = folder / "key"
        self.file.write_text(SECRET)
        self.file.chmod(0o644)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._by_path, self._by_name = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        path, name = str(folder / "s"), f"croft-attempts-{os.getpid()}"
        self._by_path.bind(path)
        self._by_name.bind(f"\0{name}")
        for listener in (self._by_path, self._by_name):
            listener.listen()
        Path(path).chmod(0o777)
        self._child = subprocess.Popen(["sleep", "600"])
        allowed = " ".join(f"{known}/" for known in sandbox_paths())
        self.facts: Facts = {
            "file": str(self.file),
            "secret": SECRET,
            "path": path,
            "name": name,
            "allowed": allowed,
            "port": str(self._server.getsockname()[1]),
            "peer": str(os.getpid()),
            "child": str(self._child.pid),
            "group": str(os.getpgid(0)),
        }

    def is_unharmed(self) -> bool:
        """Whether all is as it was."""
        return self._child.poll() is None and self.file.read_text() == SECRET

    def close(self) -> None:
        """Frees it."""
        self._child.kill()
        self._child.wait()
        for listener in (self._server, self._by_path, self._by_name):
            listener.close()


def sandbox_paths() -> list[str]:
    """Folders on the way to what a box may read, and these themselves."""
    from support.boxes import worker_spec

    paths = [Path(path) for path in worker_spec(None).read_only]
    return sorted({str(place) for path in paths for place in (path, *path.parents)})


@pytest.fixture
def surroundings(tmp_path: Path) -> Surroundings:
    made = Surroundings(tmp_path)
    yield made  # type: ignore[misc]
    made.close()


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: f"{attempt.area}: {attempt.what}")
def test_nothing_comes_of_an_attempt(cell: Cell, surroundings: Surroundings, attempt: Attempt) -> None:
    met = str(cell.attempt(trying(attempt.run, surroundings.facts)))

    assert met in STOPPED_BY, f"{attempt.what}: {met}"
    assert surroundings.is_unharmed()


def test_what_stops_each_attempt_is_written_down() -> None:
    """The table for owners names every attempt that is tried here, and nothing that is not."""
    table = TABLE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]

    assert [row[:2] for row in rows[2:]] == [[attempt.area, f"{attempt.what}"] for attempt in ATTEMPTS]
    assert all(stopped in STOPPED_BY.values() for row in rows[2:] for stopped in row[2:])
    assert len(ATTEMPTS) >= ATTEMPTS_MIN


def write_table(folder: Path) -> None:
    """Tries everything on every kind of box, and writes what stopped it into the page for owners."""
    os.environ[SECRET_VARIABLE] = SECRET
    around = Surroundings(folder)
    met: dict[str, list[str]] = {}
    for kind in CONFINING_KINDS:
        (folder / kind).mkdir()
        tried = Cell(kind, sandbox_of(kind), folder / kind)
        met[kind] = [STOPPED_BY[str(tried.attempt(trying(one.run, around.facts)))] for one in ATTEMPTS]
        tried.close()
    around.close()
    lines = ["| what | attempt | A | B | C |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.area} | {one.what} | {' | '.join(row)} |" for one, *row in zip(ATTEMPTS, *met.values(), strict=True)
    ]
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
    TABLE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    sys.modules["test_attempts"] = sys.modules["__main__"]
    with tempfile.TemporaryDirectory() as base:
        write_table(Path(base))
