"""A disk that loses power: a file system that keeps in memory what was not synced, and forgets half of it when told to.

Run as a program: `lossy_disk.py MOUNTPOINT STATE SEED`. SIGUSR1 is the power cut. What was synced is then in the file
STATE, from where the next run has it; of what was not, every page, name, removal and truncation is there or not, by
the toss of a coin. One flat folder; sizes in bytes.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import mfusepy

PAGE_BYTES = 4096
PUNCH_HOLE, KEEP_SIZE = 0x02, 0x01


@dataclass(slots=True)
class File:
    """What programs see, what is on the disk, and which pages differ; `synced` None: not even its name is there yet."""

    data: bytearray
    synced: bytes | None
    dirty: set[int] = field(default_factory=set)

    def write(self, data: bytes, at: int) -> None:
        if len(self.data) < at:
            self._touch(len(self.data), at)
            self.data.extend(bytes(at - len(self.data)))
        self.data[at : at + len(data)] = data
        self._touch(at, at + len(data))

    def cut(self, size: int) -> None:
        if size > len(self.data):
            self.write(b"", size)
        self._touch(size, len(self.data))
        del self.data[size:]

    def sync(self) -> None:
        self.synced = bytes(self.data)
        self.dirty.clear()

    def after_the_cut(self, toss: Callable[[], bool]) -> bytes | None:
        """What is left; None: nothing, not even the name."""
        if self.synced is None and toss():
            return None
        left = bytearray(self.synced or b"")
        for page in sorted(self.dirty):
            at = page * PAGE_BYTES
            now = self.data[at : at + PAGE_BYTES]
            if now and toss():
                left.extend(bytes(max(0, at + len(now) - len(left))))
                left[at : at + len(now)] = now
        if len(left) > len(self.data) and toss():
            del left[len(self.data) :]
        return bytes(left)

    def _touch(self, start: int, end: int) -> None:
        if end > start:
            self.dirty.update(range(start // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1))


class LossyDisk(mfusepy.Operations):  # type: ignore[misc]  # the library is not typed
    """One folder of files."""

    use_ns = True

    def __init__(self, state: Path, seed: int) -> None:
        held: dict[str, bytes] = pickle.loads(state.read_bytes()) if state.exists() else {}
        self._state = state
        self._coin = random.Random(seed)
        self._files = {name: File(bytearray(data), data) for name, data in held.items()}
        self._removed: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def lose_power(self, _signal: int, _frame: FrameType | None) -> None:
        with self._lock:
            left = {name: data for name, data in self._removed.items() if self._toss()}
            for name, file in self._files.items():
                data = file.after_the_cut(self._toss)
                if data is not None:
                    left[name] = data
            self._state.write_bytes(pickle.dumps(left))
        os._exit(0)

    def _toss(self) -> bool:
        return self._coin.random() < 0.5

    # --- what the system asks -----------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        with self._lock:
            size = len(self._at(path).data)
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // 512)}

    def readdir(self, path: str, fh: int) -> list[str]:
        with self._lock:
            return [".", "..", *(name[1:] for name in self._files)]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        with self._lock:
            self._files[path] = File(bytearray(), self._removed.pop(path, None))
        return 0

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            self._at(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            return bytes(self._at(path).data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            self._at(path).write(data, offset)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self._lock:
            self._at(path).cut(length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        if mode != PUNCH_HOLE | KEEP_SIZE:
            return -errno.EOPNOTSUPP
        with self._lock:
            file = self._at(path)
            file.write(bytes(max(0, min(size, len(file.data) - offset))), offset)
        return 0

    def unlink(self, path: str) -> int:
        with self._lock:
            synced = self._at(path).synced
            del self._files[path]
            if synced is not None:
                self._removed[path] = synced
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            if path in self._files:
                self._files[path].sync()
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            self._removed.clear()
            for file in self._files.values():
                if file.synced is None:
                    file.synced = b""
        return 0

    def _at(self, path: str) -> File:
        try:
            return self._files[path]
        except KeyError:
            raise mfusepy.FuseOSError(errno.ENOENT) from None


def main() -> None:
    """Serves until the power is cut, or the folder unmounted."""
    disk = LossyDisk(Path(sys.argv[2]), int(sys.argv[3]))
    signal.signal(signal.SIGUSR1, disk.lose_power)
    served = threading.Thread(
        target=mfusepy.FUSE, args=(disk, sys.argv[1]), kwargs={"foreground": True, "nothreads": True}, daemon=True
    )
    served.start()
    while served.is_alive():
        served.join(0.05)  # signals are handled here, between two of them


if __name__ == "__main__":
    main()
