"""Starts the program of a box without namespaces, and stays behind as its keeper.

Run as `python -IS box_launcher.py FD`, where FD holds a `Plan` as JSON. A child gives up what the plan says and becomes
the program. The keeper is the reaper of all its descendants; when the program ends, or the peer closes the control
pipe, or the peer dies, it kills every one of them and ends as the program did. Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

if __name__ == "__main__":
    # Under -I nothing but the standard library can be found, not even this package.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from croft.adapters.landlock import restrict_paths
from croft.adapters.process_tree import children_of_all, stop_below
from croft.adapters.seccomp import install_filter

CANNOT_START_CODE = 125
SIGNAL_CODE_BASE = 128
YIELD_TRIES_MAX, YIELD_PAUSE_S = 5, 0.03

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_CHILD_SUBREAPER, _PR_CAP_AMBIENT = 1, 8, 36, 47
_CAP_AMBIENT_RAISE = 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)

Plan = dict[str, Any]
"""
argv, environment, folder: what to run and where; sockets, control: descriptors; join: control group files;
limits: pairs of resource name and value; user: uid to become or None; reads_hidden: whether it must pass folders that
are closed to that user; read_only, writable: paths, or both None for no Landlock; filter: hex of the BPF or "".
"""


def confine(plan: Plan) -> None:
    """Gives up, for ever, what the plan says. Raises OSError."""
    os.setpgid(0, 0)
    for path in plan["join"]:
        descriptor = os.open(path, os.O_WRONLY)
        os.write(descriptor, b"0")
        os.close(descriptor)
    os.nice(plan["niceness"])
    for name, value in plan["limits"]:
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (ceiling, ceiling))
    if plan["user"] is not None:
        _become(plan["user"], plan["reads_hidden"])
    os.chdir(plan["folder"])
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if plan["read_only"] is not None:
        restrict_paths(plan["read_only"], plan["writable"])
    if plan["filter"]:
        install_filter(bytes.fromhex(plan["filter"]))


def yield_session(niceness: int) -> None:
    """Lets everything else on the machine go before this session, as far as a process without rights can.

    Where the kernel divides processors between sessions (sched(7), autogroup), a nice value counts only within one
    session, and the session has one of its own. It can be set a few times a second on the whole machine.
    """
    for _ in range(YIELD_TRIES_MAX):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as autogroup:
                autogroup.write(str(niceness))
            return
        except BlockingIOError:
            time.sleep(YIELD_PAUSE_S)
        except OSError:
            return


def _become(user: int, reads_hidden: bool) -> None:
    if reads_hidden:
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if reads_hidden:
        # Passing closed folders is all that is left of root; what may be read in them, Landlock decides.
        kept = 1 << _CAP_DAC_READ_SEARCH
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
        if _libc.capset(header, sets):
            raise OSError(ctypes.get_errno(), "capset failed")
        _libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)


def keep(program: int, control: int, user: int | None) -> int:
    """Waits for the program or for the peer; leaves nothing alive. Returns the exit code to end with."""
    poll = select.poll()
    poll.register(os.pidfd_open(program), select.POLLIN)
    poll.register(control, select.POLLIN)
    poll.poll()
    status = 0
    if user is not None:
        _kill_user(user)
    else:
        stop_below(os.getpid())
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == program:
            status = ended
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else SIGNAL_CODE_BASE - code


def _kill_user(user: int) -> None:
    """Kills every process of the box's own user at once: nothing else runs as that user."""
    killer = os.fork()
    if killer == 0:
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listed:
            return [int(pid) for pid in listed.read().split()]
    except FileNotFoundError:
        return children_of_all().get(os.getpid(), [])


def _run(plan: Plan) -> NoReturn:
    try:
        confine(plan)
        os.close(plan["control"])
        os.execve(plan["argv"][0], plan["argv"], plan["environment"])
    except OSError as error:
        sys.stderr.write(f"box launcher: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(CANNOT_START_CODE)


def main() -> int:
    """Runs the plan; returns the program's exit code, or 128 and the signal that killed it."""
    with os.fdopen(int(sys.argv[1])) as file:
        plan: Plan = json.load(file)
    yield_session(plan["niceness"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    program = os.fork()
    if program == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _run(plan)
    for inside in plan["sockets"]:
        os.close(inside)
    return keep(program, plan["control"], plan["user"])


if __name__ == "__main__":
    sys.exit(main())
