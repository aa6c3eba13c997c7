"""Holds foreign code in a box of Linux namespaces, made by bubblewrap (grades A and B).

From the outside in: the box's control group, an unprivileged user of its own when the peer runs as root, low priority,
resource limits, every namespace, no capabilities, a file system of read-only parts, the system-call filter, and one
inherited socket. Inside are the program as process 1, and nothing of the peer's environment or folders.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from croft.adapters.box_process import (
    MINIMAL_PATH,
    NICENESS,
    WORK_FOLDER,
    Launch,
    ProcessSandbox,
    box_folder,
    box_folder_parents,
    device_variable,
    is_device_node,
    make_owned_below,
    resource_limits,
)
from croft.adapters.cgroup import ControlGroups
from croft.adapters.seccomp import compile_filter
from croft.model.isolation import Isolation
from croft.ports import BoxSpec

BOX_UID_FIRST = 0x70000000
"""Above the range that systemd gives to containers; nothing on a host belongs to these users."""
BOX_UID_COUNT = 0x0FFFFFFF
UID_INSIDE = 1000
SHARED_MEMORY_BYTES = 64 << 20
KEEPER_PROCESSES = 2
"""Processes of bubblewrap's own that count towards the control group's limit."""
WORKER_KILL_PREFERENCE = 900
"""The kernel's choice when memory runs out; runners raise their own above it."""
YIELD_SESSION = (
    f"tries=0; while [ -w /proc/self/autogroup ] && [ $tries -lt 5 ] && ! echo {NICENESS} > /proc/self/autogroup; "
    "do tries=$((tries + 1)); sleep 0.03; done 2>/dev/null"
)
"""See `box_launcher.yield_session`."""
LOADER_PATHS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime")
DEVICE_FOLDER = "/devices"
PASSWD = f"box:x:{UID_INSIDE}:{UID_INSIDE}::/tmp:/bin/sh\n".encode()
GROUP = f"box:x:{UID_INSIDE}:\n".encode()


class BubblewrapSandbox(ProcessSandbox):
    """Boxes of namespaces; with `groups`, under hard limits."""

    def __init__(self, isolation: Isolation, groups: ControlGroups | None) -> None:
        super().__init__(isolation)
        self._groups = groups
        self._next_uid = secrets.randbelow(BOX_UID_COUNT)

    def _prepare(self, spec: BoxSpec, launch: Launch, inside: int) -> None:
        script: list[str] = []
        if self._groups is not None:
            processes_max = spec.processes_max + KEEPER_PROCESSES
            launch.group = self._groups.create(spec.name, spec.cpus, spec.memory_bytes, processes_max)
            launch.cleanups.append(launch.group.remove)
            script += [f"echo 0 > {shlex.quote(path)}" for path in launch.group.join_files]
        script.append(f"echo {WORKER_KILL_PREFERENCE} > /proc/self/oom_score_adj")
        script.append(YIELD_SESSION)
        prefix: list[str] = []
        sources: dict[str, str] = {}
        become: list[str] = []
        if os.geteuid() == 0:
            uid = self._take_uid()
            if spec.work_dir is not None:
                make_owned_below(spec.work_dir, uid)
            sources = _stage(_hidden_paths(spec), launch, script)
            if sources:
                prefix = ["unshare", "--mount", "--propagation", "private", "--"]
            become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]
        arguments = _bubblewrap_arguments(spec, launch, sources)
        packed = launch.remember(b"".join(argument.encode() + b"\0" for argument in arguments))
        program = ["prlimit", *resource_limits(spec), "--", "nice", "-n", str(NICENESS), *become]
        # Arguments by descriptor: the command lines of processes can be read by everyone on the host.
        program += ["bwrap", "--args", str(packed), "--", *_limited_inside(spec, self._groups is None)]
        script.append(f"exec {shlex.join(program)}")
        launch.argv = [*prefix, "/bin/sh", "-e", "-c", "\n".join(script)]

    def _take_uid(self) -> int:
        self._next_uid = (self._next_uid + 1) % BOX_UID_COUNT
        return BOX_UID_FIRST + self._next_uid


def _limited_inside(spec: BoxSpec, limits_data: bool) -> list[str]:
    # Processes are counted per user namespace, so this limit must be set inside it.
    limits = [f"--nproc={spec.processes_max}"]
    if limits_data:
        limits.append(f"--data={spec.memory_bytes}")
    return ["/usr/bin/prlimit", *limits, "--", *spec.argv]


def _bubblewrap_arguments(spec: BoxSpec, launch: Launch, sources: dict[str, str]) -> Sequence[str]:
    has_work = spec.work_dir is not None
    arguments = [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--unshare-cgroup-try", "--disable-userns", "--as-pid-1", "--die-with-parent"),
        *("--cap-drop", "ALL", "--clearenv", "--hostname", spec.host_name),
        *("--uid", str(UID_INSIDE), "--gid", str(UID_INSIDE)),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for path in LOADER_PATHS:
        if Path(path).is_symlink():
            arguments += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            arguments += ["--ro-bind", path, path]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    arguments += ["--size", str(min(SHARED_MEMORY_BYTES, spec.memory_bytes)), "--tmpfs", "/dev/shm"]
    arguments += ["--remount-ro", "/dev", "--size", str(spec.scratch_bytes), "--tmpfs", "/tmp"]
    for path in SYSTEM_FILES:
        arguments += ["--ro-bind-try", path, path]
    arguments += ["--ro-bind-data", str(launch.remember(PASSWD)), "/etc/passwd"]
    arguments += ["--ro-bind-data", str(launch.remember(GROUP)), "/etc/group"]
    if spec.work_dir is not None:
        work = str(spec.work_dir)
        arguments += ["--bind", sources.get(work, work), WORK_FOLDER]
        _forget_mount_points(spec, launch, spec.work_dir)
    for path in spec.read_only:
        arguments += ["--ro-bind", sources.get(path, path), path]
    for name, path in spec.devices.items():
        bind = "--dev-bind" if is_device_node(path) else "--ro-bind"
        arguments += [bind, sources.get(path, path), f"{DEVICE_FOLDER}/{name}"]
    arguments += ["--remount-ro", "/", "--chdir", WORK_FOLDER if has_work else "/tmp"]
    environment = {
        "PATH": MINIMAL_PATH,
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        **spec.environment,
        **{device_variable(name): f"{DEVICE_FOLDER}/{name}" for name in spec.devices},
    }
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    program = compile_filter(has_memory_limit=launch.group is not None)
    arguments += ["--seccomp", str(launch.remember(program))]
    return arguments


def _forget_mount_points(spec: BoxSpec, launch: Launch, work_dir: Path) -> None:
    """Read-only parts whose own path lies below /job need a place to be mounted there; it goes with the box."""
    for path in spec.read_only:
        if path.startswith(f"{WORK_FOLDER}/"):
            place = work_dir / Path(path).relative_to(WORK_FOLDER)
            parents = [parent for parent in (place, *place.parents) if parent.is_relative_to(work_dir)]
            for parent in reversed([parent for parent in parents if parent != work_dir]):
                launch.cleanups.append(parent.rmdir)


def _hidden_paths(spec: BoxSpec) -> Iterable[str]:
    """The paths that the box's own user cannot reach on the host."""
    paths = [*spec.read_only, *spec.devices.values()]
    if spec.work_dir is not None:
        paths.append(str(spec.work_dir))
    for path in paths:
        if not all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(path).parents):
            yield path


def _stage(paths: Iterable[str], launch: Launch, script: list[str]) -> dict[str, str]:
    """Lets the peer, while it is still root, lay out hidden paths in a mount namespace that only this box sees.

    Returns where each of them is found there.
    """
    staged = dict.fromkeys(paths, "")
    if not staged:
        return {}
    stage = box_folder(box_folder_parents()[0])
    launch.cleanups.append(stage.rmdir)
    script.append(f"mount -t tmpfs -o mode=755,size=1m croft {shlex.quote(str(stage))}")
    for number, path in enumerate(staged):
        place = f"{stage}/{number}"
        staged[path] = place
        make = "mkdir" if Path(path).is_dir() else "touch"
        script.append(f"{make} {shlex.quote(place)}")
        script.append(f"mount --rbind {shlex.quote(path)} {shlex.quote(place)}")
    return staged


def is_installed() -> bool:
    """Whether bubblewrap and the small programs around it are there."""
    return all(shutil.which(program) for program in ("bwrap", "setpriv", "prlimit", "unshare", "nice"))
