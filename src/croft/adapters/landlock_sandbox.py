"""Holds foreign code by Landlock and the system-call filter alone (grade C), where user namespaces are not to be had.

The program sees which processes and paths the host has, but may open only listed paths, reach no network and signal
nobody. Its memory is bounded per process by the kernel and in sum by a control group or else by the watchdog.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
from pathlib import Path

from croft.adapters import box_launcher
from croft.adapters.box_process import (
    LOCKED_MEMORY_BYTES_MAX,
    MINIMAL_PATH,
    NICENESS,
    OPEN_FILES_MAX,
    Launch,
    ProcessSandbox,
    device_variable,
    is_device_node,
    make_owned_below,
    scratch_folder,
)
from croft.adapters.bubblewrap_sandbox import BOX_UID_COUNT, BOX_UID_FIRST
from croft.adapters.cgroup import ControlGroups
from croft.adapters.python_runtime import runtime_environment
from croft.adapters.seccomp import compile_filter
from croft.adapters.watchdog import Watch
from croft.model.isolation import Isolation
from croft.ports import BoxSpec

KEEPER_S = 5.0
SYSTEM_PATHS = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc/self"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
)
DEVICES = ("/dev/null", "/dev/full")


class LaunchedSandbox(ProcessSandbox):
    """Boxes whose program is started by `box_launcher`; subclasses say what it must give up."""

    confines = True

    def __init__(self, isolation: Isolation, groups: ControlGroups | None) -> None:
        super().__init__(isolation)
        self._groups = groups
        self._next_uid = secrets.randbelow(BOX_UID_COUNT)

    def _prepare(self, spec: BoxSpec, launch: Launch, inside: int) -> None:
        sockets = [inside, *launch.descriptors]
        scratch = scratch_folder(launch)
        folders = [scratch] if spec.work_dir is None else [spec.work_dir, scratch]
        user: int | None = None
        if self.confines and os.geteuid() == 0:
            self._next_uid = (self._next_uid + 1) % BOX_UID_COUNT
            user = BOX_UID_FIRST + self._next_uid
            for folder in folders:
                make_owned_below(folder, user)
        if self._groups is not None:
            launch.group = self._groups.create(spec.name, spec.cpus, spec.memory_bytes, spec.processes_max)
            launch.cleanups.append(launch.group.remove)
        control_inside, control = os.pipe()
        launch.held.append(control)
        launch.descriptors.append(control_inside)
        environment = {"PATH": MINIMAL_PATH, "HOME": str(scratch), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}
        plan: box_launcher.Plan = {
            "argv": spec.argv,
            "environment": {
                **environment,
                **spec.environment,
                **{device_variable(name): place for name, place in spec.devices.items()},
            },
            "folder": str(folders[0]),
            "sockets": sockets,
            "control": control_inside,
            "join": [] if launch.group is None else list(launch.group.join_files),
            "niceness": NICENESS,
            "limits": _limits(spec, user, has_group=launch.group is not None),
            "user": user,
            "reads_hidden": user is not None
            and _is_hidden([*spec.read_only, *spec.devices.values(), *map(str, folders)]),
            "read_only": None,
            "writable": None,
            "filter": "",
        }
        if self.confines:
            nodes = [place for place in spec.devices.values() if is_device_node(place)]
            files = [place for place in spec.devices.values() if place not in nodes]
            plan["read_only"] = [*SYSTEM_PATHS, *spec.read_only, *files]
            plan["writable"] = [*DEVICES, *nodes, *map(str, folders)]
            plan["filter"] = compile_filter(
                has_namespaces=False, has_own_user=user is not None, has_memory_limit=launch.group is not None
            ).hex()
        packed = launch.remember(json.dumps(plan).encode())
        launch.argv = [sys.executable, "-IS", box_launcher.__file__, str(packed)]
        launch.environment = runtime_environment()
        launch.keeper_s = KEEPER_S
        launch.scratch = scratch

    def _watch(self, spec: BoxSpec, launch: Launch) -> Watch:
        watch = super()._watch(spec, launch)
        watch.scratch = launch.scratch
        watch.scratch_bytes_max = spec.scratch_bytes
        watch.has_keeper = True
        return watch


class LandlockSandbox(LaunchedSandbox):
    """Boxes of grade C."""


def _limits(spec: BoxSpec, user: int | None, *, has_group: bool) -> list[tuple[str, int]]:
    limits = [
        ("RLIMIT_NOFILE", OPEN_FILES_MAX),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", max(spec.work_bytes, spec.scratch_bytes)),
        ("RLIMIT_MEMLOCK", LOCKED_MEMORY_BYTES_MAX),
        ("RLIMIT_MSGQUEUE", 0),
    ]
    if not has_group:
        limits.append(("RLIMIT_DATA", spec.memory_bytes))
    if user is not None:
        limits.append(("RLIMIT_NPROC", spec.processes_max))
    elif not has_group:
        # The kernel counts all processes of a user, also those outside the box.
        limits.append(("RLIMIT_NPROC", _own_processes() + spec.processes_max))
    return limits


def _own_processes() -> int:
    count = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if process.stat().st_uid == os.getuid():
                    count += sum(1 for _ in (process / "task").iterdir())
            except OSError:
                continue
    return count


def _is_hidden(paths: list[str]) -> bool:
    return any(not parent.stat().st_mode & stat.S_IXOTH for path in paths for parent in Path(path).parents)
