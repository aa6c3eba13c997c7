"""Keeps limits that no kernel feature keeps for us: memory where there is no control group, and the size of `/job`.

One thread looks at all boxes of a sandbox in turn; it exists only while there are boxes. It finds the processes of a
box by descent, which nothing inside can fake: orphans fall to the box's first process or to its keeper.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from croft.adapters.process_tree import children_of_all, descendants, stat_fields

MEMORY_SWEEP_S = 0.05
FOLDER_SWEEP_S_MIN = 0.25
FOLDER_SHARE_MAX = 0.05
"""At most this share of one processor goes into measuring a folder."""
FOLDER_DEPTH_MAX = 64
SECTOR_BYTES = 512
TMPFS_INODE_BYTES = 1024
MEMORY_FILE_SYSTEMS = ("tmp", "dev/shm")

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class TooDeep(Exception):
    """Folders are nested deeper than any honest program nests them."""


@dataclass(slots=True, eq=False)
class Watch:
    """What to look after in one box, and what was seen. `reason` is set once a limit was exceeded and it was killed."""

    pid: int
    memory_bytes_max: int | None = None
    folder: Path | None = None
    folder_bytes_max: int = 0
    folder_files_max: int = 0
    scratch: Path | None = None
    scratch_bytes_max: int = 0
    has_keeper: bool = False
    """The first process stays outside the box to clear it away, so it is neither counted nor killed."""
    reason: str = ""
    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    is_over: bool = False
    next_folder_sweep: float = field(default=0.0)

    def end(self) -> None:
        """Stops watching."""
        self.is_over = True


class Watchdog:
    """Looks after any number of boxes from one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: list[Watch] = []
        self._thread: threading.Thread | None = None

    def watch(self, watch: Watch) -> Watch:
        """Begins to look after a box; returns the watch, to be ended by its owner."""
        with self._lock:
            self._watches.append(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="croft-watchdog", daemon=True)
                self._thread.start()
        return watch

    def _run(self) -> None:
        while True:
            with self._lock:
                self._watches = [watch for watch in self._watches if not watch.is_over]
                if not self._watches:
                    self._thread = None
                    return
                watches = list(self._watches)
            needs_processes = any(watch.memory_bytes_max is not None for watch in watches)
            children = children_of_all() if needs_processes else {}
            for watch in watches:
                with contextlib.suppress(OSError):
                    self._look(watch, children)
            time.sleep(MEMORY_SWEEP_S if needs_processes else FOLDER_SWEEP_S_MIN)

    def _look(self, watch: Watch, children: Mapping[int, list[int]]) -> None:
        if watch.is_over or watch.reason:
            return
        pids: list[int] = []
        if watch.memory_bytes_max is not None:
            pids = _inside(watch, children)
            self._look_at_memory(watch, pids, watch.memory_bytes_max)
        now = time.monotonic()
        if not watch.reason and now >= watch.next_folder_sweep:
            if not pids:
                pids = _inside(watch, children_of_all())
            self._look_at_folders(watch, pids)
            spent = time.monotonic() - now
            watch.next_folder_sweep = time.monotonic() + max(FOLDER_SWEEP_S_MIN, spent / FOLDER_SHARE_MAX)
        if watch.reason and not watch.is_over:
            _kill(watch)

    def _look_at_memory(self, watch: Watch, pids: list[int], limit: int) -> None:
        cpu_s, used = 0.0, memory_file_systems_bytes(pids)
        for pid in pids:
            used += _resident_bytes(pid)
            cpu_s += _cpu_s(pid)
        if used > limit:
            # Pages that forks share were counted once for each of them: count exactly before killing.
            used = memory_file_systems_bytes(pids) + sum(_proportional_bytes(pid) for pid in pids)
        watch.cpu_s = max(watch.cpu_s, cpu_s)
        watch.memory_peak_bytes = max(watch.memory_peak_bytes, used)
        if used > limit:
            watch.reason = f"memory limit {limit >> 20} MiB exceeded"

    def _look_at_folders(self, watch: Watch, pids: Iterable[int]) -> None:
        for folder, bytes_max, files_max, name in (
            (watch.folder, watch.folder_bytes_max, watch.folder_files_max, "/job"),
            (watch.scratch, watch.scratch_bytes_max, watch.folder_files_max, "the scratch folder"),
        ):
            if folder is None:
                continue
            try:
                used, files = folder_usage(folder)
            except TooDeep:
                watch.reason = f"folders in {name} are nested deeper than {FOLDER_DEPTH_MAX}"
                return
            if folder is watch.folder or watch.folder is None:
                # Which folder a file without a name was in cannot be told: it counts once, towards the first.
                used += deleted_files_bytes(pids, folder.stat().st_dev)
            if used > bytes_max:
                watch.reason = f"disk limit {bytes_max >> 20} MiB of {name} exceeded"
            elif files > files_max:
                watch.reason = f"limit of {files_max} files in {name} exceeded"


def _kill(watch: Watch) -> None:
    for pid in reversed(_inside(watch, children_of_all())):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def folder_usage(folder: Path) -> tuple[int, int]:
    """Bytes allocated below `folder`, and how many files and folders. Follows no links. Raises TooDeep, OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return _usage_below(descriptor, FOLDER_DEPTH_MAX)
    finally:
        os.close(descriptor)


def _usage_below(descriptor: int, depth_left: int) -> tuple[int, int]:
    if depth_left == 0:
        raise TooDeep
    used = files = 0
    with os.scandir(descriptor) as entries:
        for entry in entries:
            files += 1
            try:
                used += entry.stat(follow_symlinks=False).st_blocks * SECTOR_BYTES
                if not entry.is_dir(follow_symlinks=False):
                    continue
                below = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError:
                continue  # gone in the meantime, or closed to us: then it is small
            try:
                used_below, files_below = _usage_below(below, depth_left - 1)
            finally:
                os.close(below)
            used += used_below
            files += files_below
    return used, files


def deleted_files_bytes(pids: Iterable[int], device: int) -> int:
    """Bytes on `device` of files that these processes hold open but that have no name any more."""
    sizes: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")
                    if status.st_nlink == 0 and status.st_dev == device:
                        sizes[status.st_ino] = status.st_blocks * SECTOR_BYTES
    return sum(sizes.values())


def memory_file_systems_bytes(pids: list[int]) -> int:
    """Memory held by the files in the box's own tmpfs mounts, whoever made them."""
    for pid in reversed(pids):
        used = 0
        try:
            device = os.stat("/").st_dev
            for path in MEMORY_FILE_SYSTEMS:
                root = f"/proc/{pid}/root"
                if os.stat(root).st_dev == device:
                    break  # it shares the host's file systems
                status = os.statvfs(f"{root}/{path}")
                used += (status.f_blocks - status.f_bfree) * status.f_frsize
                used += (status.f_files - status.f_ffree) * TMPFS_INODE_BYTES
        except OSError:
            continue
        return used
    return 0


def _inside(watch: Watch, children: Mapping[int, list[int]]) -> list[int]:
    return descendants(watch.pid, children)[int(watch.has_keeper) :]


def _resident_bytes(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[21]) * _PAGE_BYTES if fields else 0


def _cpu_s(pid: int) -> float:
    """Processor time of a process and of those of its children that it has reaped."""
    fields = stat_fields(pid)
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S if fields else 0.0


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as lines:
            for line in lines:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return _resident_bytes(pid)
