"""Files and folders of this machine, as storage reads and writes them. Work on the disk is done in threads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from croft.errors import Failed, Refused, Usage
from croft.ports import Offload

FILES_MAX: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that is to be put, and what it is to be called."""

    path: bytes
    name: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is kept of a file besides its bytes."""

    mode: int
    mtime_ns: int


def found_files(path: bytes, name: bytes) -> Iterator[LocalFile]:
    """A file, or all files in a folder, in order of their names; what is neither is left out.

    Raises Failed for what cannot be read, Usage for what is not there.
    """
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    below = name + b"/" + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        yield from found_files(entry.path, below)
                    elif entry.is_file(follow_symlinks=False):
                        yield LocalFile(entry.path, below, entry.stat().st_size)
        else:
            yield LocalFile(path, name, info.st_size)
    except FileNotFoundError:
        raise Usage(f"there is no file {os.fsdecode(path)}", remedy="Check the path.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


class FileSource:
    """A file as a source of bytes. Made by `open`; close it."""

    def __init__(self, path: bytes, descriptor: int, attributes: Attributes, offload: Offload) -> None:
        self._path = path
        self._descriptor = descriptor
        self._offload = offload
        self.attributes = attributes

    @classmethod
    async def open(cls, path: bytes, offload: Offload) -> FileSource:
        """Raises Failed."""

        def opened() -> tuple[int, os.stat_result]:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return descriptor, os.fstat(descriptor)

        try:
            descriptor, info = await offload.run(opened)
        except OSError as error:
            raise _unreadable(path, error) from None
        return cls(path, descriptor, Attributes(stat.S_IMODE(info.st_mode), info.st_mtime_ns), offload)

    async def fill(self, into: memoryview) -> int:
        """See `croft.storage.contents.Source`."""
        try:
            return await self._offload.run(_read_full, self._descriptor, into)
        except OSError as error:
            raise _unreadable(self._path, error) from None

    def close(self) -> None:
        """Idempotent it is not."""
        os.close(self._descriptor)


def read_small(files: list[LocalFile]) -> list[tuple[bytes, Attributes]]:
    """All of some small files. Raises Failed."""
    read: list[tuple[bytes, Attributes]] = []
    for file in files:
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                info = os.fstat(descriptor)
                parts = [os.read(descriptor, info.st_size + 1)]
                while parts[-1]:
                    parts.append(os.read(descriptor, 1 << 20))
                read.append((b"".join(parts), Attributes(stat.S_IMODE(info.st_mode), info.st_mtime_ns)))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(file.path, error) from None
    return read


class FileTarget:
    """A file that is written beside its place, and moved there once it is whole."""

    def __init__(self, path: bytes, *, replaces: bool) -> None:
        folder, name = os.path.split(path)
        self._path = path
        self._part = os.path.join(folder, b"." + name[:200] + b".croft-part")
        if not replaces and os.path.lexists(path):
            raise Refused(
                f"{os.fsdecode(path)} is there already", remedy="Name another place, or replace it with --force."
            )
        try:
            os.makedirs(folder or b".", exist_ok=True)
            self._descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from None

    def write(self, data: bytes | memoryview) -> None:
        """Appends. Raises Failed."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def end(self, attributes: Attributes) -> None:
        """It is whole. Raises Failed."""
        try:
            os.fchmod(self._descriptor, attributes.mode & 0o777)
            os.utime(self._descriptor, ns=(attributes.mtime_ns, attributes.mtime_ns))
            os.rename(self._part, self._path)
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def close(self) -> None:
        """Lets go; what is not whole is removed."""
        os.close(self._descriptor)
        try:
            os.unlink(self._part)
        except OSError:
            pass  # it was moved to its place


def place_below(folder: bytes, name: bytes) -> bytes:
    """Where a name lies below a folder. Raises Refused for one that leads out of it."""
    parts = name.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise Refused(f"`{name.decode(errors='replace')}` is no name of a file below a folder")
    return os.path.join(folder, *parts)


def _read_full(descriptor: int, into: memoryview) -> int:
    at = 0
    while at < len(into):
        count = os.readv(descriptor, [into[at:]])
        if not count:
            break
        at += count
    return at


def _unreadable(path: bytes, error: OSError) -> Failed:
    return Failed(f"cannot read {os.fsdecode(path)}: {error.strerror}", remedy="Mend its permissions, or leave it out.")


def _unwritable(path: bytes, error: OSError) -> Failed:
    return Failed(f"cannot write {os.fsdecode(path)}: {error.strerror}", remedy="Name another place, or make room.")
