"""Hard limits and exact usage by control groups: version 2, version 1, or none where neither is writable.

Version 2 needs a subtree that this process may write and in which it runs itself ("delegation"): systemd gives one to a
service with `Delegate=yes`. A group that has children may hold no process, so this process moves to a leaf first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path("/sys/fs/cgroup")
FOLDER = "croft"
PEER_LEAF = "peer"
PERIOD_US = 100_000
QUOTA_US_MIN = 1_000
REMOVAL_TRIES_MAX = 300
REMOVAL_PAUSE_S = 0.005
VERSION_1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
VERSION_2_CONTROLLERS = ("cpu", "memory", "pids")
LENT_SHARES, LENT_WEIGHT = 20, 2
"""Beside 1024 and 100, what the owner's own work has: where both want a processor, boxes get a fiftieth of it."""
NEEDED_CONTROLLERS = frozenset(("memory", "pids"))


class ControlGroup(Protocol):
    """The group of one box."""

    @property
    def join_files(self) -> Sequence[str]:
        """A process joins by writing `0` to each of these."""
        ...

    def kill(self) -> None:
        """Kills every process in the group."""
        ...

    def hold(self, is_held: bool) -> None:
        """Stops every process in the group, or lets them go on. Raises OSError."""
        ...

    def limit_cpus(self, cpus: float) -> None:
        """Gives the group so many processors."""
        ...

    def cpu_s(self) -> float: ...

    def memory_peak_bytes(self) -> int: ...

    def memory_kills(self) -> int:
        """How many processes the kernel killed because the group's memory was exhausted."""
        ...

    def process_refusals(self) -> int:
        """How many times the limit on processes refused one."""
        ...

    def remove(self) -> None:
        """Kills what is left and removes the group; blocks until the kernel lets go."""
        ...


class ControlGroups(Protocol):
    """A hierarchy in which groups can be made."""

    def create(self, name: str, cpus: float, memory_bytes: int, processes_max: int) -> ControlGroup:
        """A new group with these limits. Raises OSError."""
        ...

    def abandoned(self) -> Sequence[ControlGroup]:
        """The groups that peers made whose process is gone."""
        ...


def find_control_groups() -> ControlGroups | str:
    """The hierarchy that works here, found by making a group in it; else the reason why none does."""
    try:
        is_version_two = (ROOT / "cgroup.controllers").exists()
        groups: ControlGroups = _VersionTwo.find() if is_version_two else _VersionOne.find()
        groups.create("probe", 1.0, 64 << 20, 8).remove()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return f"no control group can be made: {error.strerror or error}{where}"
    return groups


def is_of_the_dead(name: str) -> bool:
    """Whether `name`, `PID-WHATEVER`, is of a process that has ended."""
    pid = name.partition("-")[0]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return _state(pid) in ("Z", "X")


def _state(pid: str) -> str:
    """The kernel's letter for a process: one that nobody has reaped yet has ended all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _write(path: Path, value: object) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _try_write(path: Path, value: object) -> None:
    with contextlib.suppress(OSError):
        _write(path, value)


def _read_number(path: Path, key: str = "") -> int:
    """The number in a file, or the one after `key` in a file of `key number` lines; 0 if there is none."""
    try:
        text = path.read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        words = line.split()
        if words and (not key or words[0] == key) and words[-1].isdigit():
            return int(words[-1])
    return 0


def _remove_folder(folder: Path, group: ControlGroup) -> None:
    for _ in range(REMOVAL_TRIES_MAX):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            with contextlib.suppress(OSError):
                group.kill()
            time.sleep(REMOVAL_PAUSE_S)
        else:
            return


def _own_path(controller: str) -> str:
    """This process's group in the hierarchy of `controller`; `""` means version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.strip("/")
    return ""


class _GroupTwo:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def join_files(self) -> Sequence[str]:
        return (str(self._folder / "cgroup.procs"),)

    def kill(self) -> None:
        try:
            _write(self._folder / "cgroup.kill", 1)
        except OSError:  # before Linux 5.14
            _kill_listed(self._folder)

    def hold(self, is_held: bool) -> None:
        _write(self._folder / "cgroup.freeze", int(is_held))

    def limit_cpus(self, cpus: float) -> None:
        _try_write(self._folder / "cpu.max", f"{_quota_us(cpus)} {PERIOD_US}")

    def cpu_s(self) -> float:
        return _read_number(self._folder / "cpu.stat", "usage_usec") / 1e6

    def memory_peak_bytes(self) -> int:
        return _read_number(self._folder / "memory.peak") or _read_number(self._folder / "memory.current")

    def memory_kills(self) -> int:
        return _read_number(self._folder / "memory.events", "oom_kill")

    def process_refusals(self) -> int:
        return _read_number(self._folder / "pids.events", "max")

    def remove(self) -> None:
        _remove_folder(self._folder, self)


class _VersionTwo:
    def __init__(self, base: Path) -> None:
        self._base = base

    @classmethod
    def find(cls) -> _VersionTwo:
        own = ROOT / _own_path("")
        base = own.parent if own.name == PEER_LEAF else own
        have = set((base / "cgroup.controllers").read_text().split())
        if not have >= NEEDED_CONTROLLERS:
            raise OSError(f"only {' '.join(sorted(have)) or 'no'} controllers are delegated to {base}")
        wanted = [name for name in VERSION_2_CONTROLLERS if name in have]
        enabled = set((base / "cgroup.subtree_control").read_text().split())
        if not enabled >= set(wanted):
            if base != ROOT:
                leaf = base / PEER_LEAF
                leaf.mkdir(exist_ok=True)
                for pid in (base / "cgroup.procs").read_text().split():
                    _write(leaf / "cgroup.procs", pid)
            _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
        return cls(base)

    def create(self, name: str, cpus: float, memory_bytes: int, processes_max: int) -> ControlGroup:
        folder = self._base / f"{FOLDER}-{os.getpid()}-{name}"
        folder.mkdir()
        try:
            _write(folder / "memory.max", memory_bytes)
            _try_write(folder / "memory.swap.max", 0)
            # One process at a time: a runner dies, the worker that keeps the functions lives.
            _try_write(folder / "memory.oom.group", 0)
            _write(folder / "pids.max", processes_max)
            _try_write(folder / "cpu.weight", LENT_WEIGHT)
            _try_write(folder / "cpu.max", f"{_quota_us(cpus)} {PERIOD_US}")
        except OSError:
            folder.rmdir()
            raise
        return _GroupTwo(folder)

    def abandoned(self) -> Sequence[ControlGroup]:
        folders = self._base.glob(f"{FOLDER}-*")
        return [_GroupTwo(folder) for folder in folders if is_of_the_dead(folder.name.removeprefix(f"{FOLDER}-"))]


class _GroupOne:
    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    @property
    def join_files(self) -> Sequence[str]:
        return [str(folder / "cgroup.procs") for folder in self._folders.values()]

    def kill(self) -> None:
        freezer = self._folders.get("freezer")
        if freezer is not None:
            _try_write(freezer / "freezer.state", "FROZEN")
        _kill_listed(self._folders["pids"])
        if freezer is not None:
            _try_write(freezer / "freezer.state", "THAWED")

    def hold(self, is_held: bool) -> None:
        freezer = self._folders.get("freezer")
        if freezer is None:
            raise OSError(errno.ENOENT, "there is no freezer")
        _write(freezer / "freezer.state", "FROZEN" if is_held else "THAWED")

    def limit_cpus(self, cpus: float) -> None:
        if "cpu" in self._folders:
            _try_write(self._folders["cpu"] / "cpu.cfs_quota_us", _quota_us(cpus))

    def cpu_s(self) -> float:
        folder = self._folders.get("cpuacct")
        return _read_number(folder / "cpuacct.usage") / 1e9 if folder else 0.0

    def memory_peak_bytes(self) -> int:
        return _read_number(self._folders["memory"] / "memory.max_usage_in_bytes")

    def memory_kills(self) -> int:
        return _read_number(self._folders["memory"] / "memory.oom_control", "oom_kill")

    def process_refusals(self) -> int:
        return _read_number(self._folders["pids"] / "pids.events", "max")

    def remove(self) -> None:
        for folder in self._folders.values():
            _remove_folder(folder, self)


class _VersionOne:
    def __init__(self, bases: Mapping[str, Path]) -> None:
        self._bases = bases

    @classmethod
    def find(cls) -> _VersionOne:
        bases: dict[str, Path] = {}
        for controller in VERSION_1_CONTROLLERS:
            for parent in (ROOT / controller, ROOT / controller / _own_path(controller)):
                try:
                    (parent / FOLDER).mkdir(exist_ok=True)
                    probe = parent / FOLDER / f"probe-{os.getpid()}"
                    probe.mkdir()
                    probe.rmdir()
                except OSError:
                    continue
                bases[controller] = parent / FOLDER
                break
        if not bases.keys() >= NEEDED_CONTROLLERS:
            raise OSError(f"only {' '.join(sorted(bases)) or 'no'} hierarchies are writable")
        if "cpu" in bases:
            _try_write(bases["cpu"] / "cpu.shares", LENT_SHARES)
        return cls(bases)

    def create(self, name: str, cpus: float, memory_bytes: int, processes_max: int) -> ControlGroup:
        folders = {controller: base / f"{os.getpid()}-{name}" for controller, base in self._bases.items()}
        group = _GroupOne(folders)
        try:
            for folder in folders.values():
                folder.mkdir(parents=True)
            _write(folders["memory"] / "memory.limit_in_bytes", memory_bytes)
            _try_write(folders["memory"] / "memory.memsw.limit_in_bytes", memory_bytes)
            _write(folders["pids"] / "pids.max", processes_max)
            if "cpu" in folders:
                _try_write(folders["cpu"] / "cpu.cfs_period_us", PERIOD_US)
                _try_write(folders["cpu"] / "cpu.cfs_quota_us", _quota_us(cpus))
        except OSError:
            group.remove()
            raise
        return group

    def abandoned(self) -> Sequence[ControlGroup]:
        names = {folder.name for base in self._bases.values() for folder in base.iterdir() if folder.is_dir()}
        dead = sorted(name for name in names if is_of_the_dead(name))
        return [_GroupOne({controller: base / name for controller, base in self._bases.items()}) for name in dead]


def _quota_us(cpus: float) -> int:
    return max(QUOTA_US_MIN, int(cpus * PERIOD_US))


def _kill_listed(folder: Path) -> None:
    for pid in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
