"""Owns every process below the worker: exact parentage, so that what a chunk leaves behind can be found and killed.

The worker is the reaper of its box: process 1 of a PID namespace, or a child subreaper where there is none. Each
runner is a subreaper too, so that a daemon started by a task stays below its runner while that one lives and falls to
the worker when it dies. Hence every child of the worker that the worker did not start itself is a straggler.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
SWEEPS_MAX = 30
"""Rounds of killing stragglers before everything in the box, spares and runners included, is killed at once."""
OVERRUN_CODE = 71
"""What a worker ends with that cannot get rid of what its tasks left; its keeper then clears the box away."""

_libc = ctypes.CDLL(None, use_errno=True)


def set_dumpable(is_dumpable: bool) -> None:
    """Decides whether other processes of the box's user may look into this one's memory."""
    _libc.prctl(PR_SET_DUMPABLE, int(is_dumpable), 0, 0, 0)


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process. Survives exec, is not inherited by fork."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def prefer_for_killing() -> None:
    """Makes the kernel choose this process rather than the worker when memory runs out."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, b"1000")
        finally:
            os.close(descriptor)


def describe_exit(status: int) -> str:
    """Words for a wait status: `killed by SIGSEGV`, `exit code 3`."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the process ended with exit code {code}"
    if -code == signal.SIGKILL:
        return "killed by SIGKILL, most likely because it ran out of memory"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Children:
    """The worker's own children, and the killing of all others."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._is_process_one = os.getpid() == 1
        own = f"/proc/self/task/{os.getpid()}/children"
        try:
            self._list: int | None = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._list = None

    def add(self, pid: int) -> None:
        """Counts `pid` among the children that the worker started on purpose."""
        self._known.add(pid)

    def kill(self, pid: int) -> int:
        """Kills a child with SIGKILL, reaps it and returns its wait status."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self.reap(pid)

    def reap(self, pid: int) -> int:
        """Waits for a child that is about to end and returns its wait status."""
        self._known.discard(pid)
        try:
            return os.waitpid(pid, 0)[1]
        except ChildProcessError:
            return 0

    def sweep(self) -> bool:
        """Kills all stragglers and what they started. False if that took killing everything else as well."""
        for _ in range(SWEEPS_MAX):
            strangers = [pid for pid in self._current() if pid not in self._known]
            if not strangers:
                return True
            for pid in strangers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in strangers:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        # They fork faster than they are killed one by one.
        if not self._is_process_one:
            os._exit(OVERRUN_CODE)
        while strangers := [pid for pid in self._current() if pid not in self._known]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            for pid in strangers:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        return False

    def _current(self) -> list[int]:
        if self._list is None:
            return _children_by_walking(os.getpid())
        return [int(pid) for pid in os.pread(self._list, 1 << 16, 0).split()]


def _children_by_walking(parent: int) -> list[int]:
    """For kernels without /proc/<pid>/task/<tid>/children."""
    found: list[int] = []
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return found
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(name))
    return found
