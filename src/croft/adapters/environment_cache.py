"""Keeps wheels and the environments built of them on this machine's disk; what was not used for longest goes first.

    wheels/DIGEST        a wheel by the BLAKE3 digest of its bytes, in hex
    built/BOOT-DIGEST    an environment; one from before the machine last started may be torn, and is built anew
    packed/KEY           which wheel was made of a distribution that is installed here

Programs of the owner put wheels in as well as the daemon does: every file appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from croft.adapters.box_process import remove_folder
from croft.errors import Failed, NotFound

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BOOT_LENGTH = 8
PART_PREFIX = ".part-"
PART_S_MAX = 86_400.0
"""What a program that died had begun goes after so long."""
PACKED_MAX = 2_000
COPY_BYTES = 1 << 20


class EnvironmentCache:
    """See `croft.compute.environments.Cache`. `bytes_max` holds for wheels and for environments, each.

    Raises Failed if its folders cannot be made.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self.wheels = folder / "wheels"
        self.bytes_max = bytes_max
        self._built = folder / "built"
        self._packed = folder / "packed"
        self._boot = _boot()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (self.wheels, self._built, self._packed):
                part.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise Failed(f"cannot make the folder {folder}: {error.strerror}", remedy="Mend its permissions.") from None

    # --- wheels ------------------------------------------------------------------------------------------------------

    def place(self, digest: bytes) -> Path:
        """Where a wheel is, or would be."""
        return self.wheels / digest.hex()

    def has(self, digest: bytes) -> bool:
        """Whether a wheel is here; it counts as used."""
        return _touch(self.place(digest))

    def put(self, source: Path) -> tuple[bytes, int]:
        """Keeps a copy of a wheel that is a file of this machine: its digest and size. Blocks. Raises OSError."""
        size = source.stat().st_size
        digest = blake3(max_threads=blake3.AUTO).update_mmap(source).digest() if size else blake3().digest()
        if not self.has(digest):
            with self.part() as part:
                shutil.copyfile(source, part)
                part.replace(self.place(digest))
        return digest, size

    async def read(self, digest: bytes, offset: int, size: int) -> bytes:
        """Part of a wheel. Raises NotFound."""

        def read() -> bytes:
            with self.place(digest).open("rb") as file:
                return os.pread(file.fileno(), size, offset)

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise NotFound(f"a wheel is not here: {error.strerror}") from None

    async def keep(self, digest: bytes, parts: AsyncIterator[bytes]) -> bool:
        """Keeps what comes, if it is what the digest says; else nothing, and False. Raises Failed."""
        hasher = blake3()
        try:
            with self.part() as part:
                with part.open("wb") as file:
                    async for data in parts:
                        hasher.update(data)
                        await asyncio.to_thread(file.write, data)
                if hasher.digest() != digest:
                    return False
                part.replace(self.place(digest))
                return True
        except TimeoutError:
            raise  # the source's, not the disk's
        except OSError as error:
            raise Failed(f"no room for a wheel: {error.strerror}", remedy="Its owner must free some disk.") from None

    def drop(self, digest: bytes) -> None:
        """Removes a wheel that turned out to be damaged."""
        self.place(digest).unlink(missing_ok=True)

    # --- environments ------------------------------------------------------------------------------------------------

    def find(self, digest: bytes) -> Path | None:
        """Where the environment of that digest is, if it is built; it counts as used."""
        place = self._built / f"{self._boot}-{digest.hex()}"
        return place if _touch(place) else None

    async def adopt(self, digest: bytes, folder: Path) -> Path:
        """Takes over the folder in which an environment was built. Raises Failed."""
        place = self._built / f"{self._boot}-{digest.hex()}"
        try:
            folder.chmod(0o755)
            folder.rename(place)
        except OSError as error:
            raise Failed(f"an environment cannot be kept: {error.strerror}") from None
        _touch(place)
        return place

    async def trim(self, used: Collection[str]) -> None:
        """Removes what was not used for longest until all fits; nothing that is `used`, by path."""
        await asyncio.to_thread(self._trim, used)

    def _trim(self, used: Collection[str]) -> None:
        for part in self.wheels.glob(f"{PART_PREFIX}*"):
            if _age_s(part) > PART_S_MAX:
                part.unlink(missing_ok=True)
        for stale in self._built.iterdir():
            if not stale.name.startswith(f"{self._boot}-"):
                _remove(stale)
        for wheel in _oldest(self.wheels, self.bytes_max, used):
            wheel.unlink(missing_ok=True)
        for built in _oldest(self._built, self.bytes_max, used):
            _remove(built)
        for packed in sorted(self._packed.iterdir(), key=_used_at)[:-PACKED_MAX]:
            packed.unlink(missing_ok=True)

    # --- what was packed here ----------------------------------------------------------------------------------------

    def packed(self, key: str) -> tuple[str, int, bytes] | None:
        """Name, size and digest of the wheel that was made for `key`, if it still is here."""
        try:
            name, size, digest = (self._packed / key).read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return None
        _touch(self._packed / key)
        return (name, int(size), bytes.fromhex(digest)) if self.has(bytes.fromhex(digest)) else None

    def remember_packed(self, key: str, name: str, size: int, digest: bytes) -> None:
        """Notes which wheel was made for `key`. Raises OSError."""
        with self.part() as part:
            part.write_text(f"{name} {size} {digest.hex()}\n", encoding="utf-8")
            part.replace(self._packed / key)

    @contextlib.contextmanager
    def part(self) -> Iterator[Path]:
        """An empty file beside the wheels, gone at the end of the block unless it was moved."""
        descriptor, name = tempfile.mkstemp(prefix=PART_PREFIX, dir=self.wheels)
        os.fchmod(descriptor, 0o644)  # boxes have users of their own; others are kept out by the folder above
        os.close(descriptor)
        part = Path(name)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()[:BOOT_LENGTH]
    except OSError:
        return f"{int(time.time() - time.monotonic()) // 600:08x}"


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def _used_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _age_s(path: Path) -> float:
    return time.time() - _used_at(path)


def _oldest(folder: Path, bytes_max: int, used: Collection[str]) -> Sequence[Path]:
    """What to remove of a folder's entries so that the rest takes at most `bytes_max`."""
    sizes = {entry: _size(entry) for entry in folder.iterdir() if not entry.name.startswith(PART_PREFIX)}
    excess = sum(sizes.values()) - bytes_max
    doomed: list[Path] = []
    for entry in sorted(sizes, key=_used_at):
        if excess <= 0:
            break
        if str(entry) not in used:
            doomed.append(entry)
            excess -= sizes[entry]
    return doomed


def _size(path: Path) -> int:
    if not path.is_dir():
        return _blocks(path)
    return sum(_blocks(Path(parent) / name) for parent, _, names in os.walk(path) for name in names)


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _remove(folder: Path) -> None:
    try:
        remove_folder(folder)
    except OSError as error:
        log.warning("the environment in %s stays: %s", folder, error.strerror)
