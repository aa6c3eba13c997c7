"""Writes and reads files below one folder, never through a symbolic link and never anything but regular files.

Code in the box owns the folder and may prepare any trap in it; each path component is opened on its own, relative to
its parent's descriptor, without following links.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque

from croft.compute.worker_loop import PeerLink
from croft.compute.worker_messages import (
    FILE_DEPTH_MAX,
    FILE_PART_BYTES,
    FILES_LISTED_MAX,
    FileBytes,
    FileEnd,
    FileFailed,
    FileList,
    FilePut,
    PutFile,
)

PATH_PARTS_MAX = 64

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def _parts_of(path: str) -> list[str]:
    """The parts of a relative path that leads nowhere but down. Raises OSError with a plain reason."""
    parts = path.split("/")
    if len(parts) > PATH_PARTS_MAX or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise OSError("the path must be relative, without empty parts, `.` or `..`")
    return parts


def open_below(root: int, path: str, flags: int, *, mode: int = 0o644, makes_parents: bool = False) -> int:
    """Opens the regular file at the relative `path` below the folder `root`. Raises OSError with a plain reason."""
    parts = _parts_of(path)
    folder = os.dup(root)
    try:
        for part in parts[:-1]:
            if makes_parents:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=folder)
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        descriptor = os.open(parts[-1], flags | _FILE, mode, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return descriptor


def _files_below(root: int, path: str) -> list[str]:
    _parts_of(path)
    found: list[str] = []

    def stop(error: OSError) -> None:
        raise error

    for folder, _, _, descriptor in os.fwalk(path, dir_fd=root, onerror=stop, follow_symlinks=False):
        inside = folder[len(path) :].strip("/")
        if inside.count("/") >= FILE_DEPTH_MAX:
            raise OSError(f"its folders are nested deeper than {FILE_DEPTH_MAX}")
        with os.scandir(descriptor) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        found += [f"{inside}/{name}" if inside else name for name in names]
        if len(found) > FILES_LISTED_MAX:
            raise OSError(f"it holds more than {FILES_LISTED_MAX} files")
    return sorted(name for name in found if name.isprintable())


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class Files:
    """One incoming transfer at a time and a queue of outgoing ones, read no faster than the peer takes them."""

    def __init__(self, link: PeerLink, root: int) -> None:
        self._link = link
        self._root = root
        self._incoming: PutFile | None = None
        self._incoming_descriptor: int | None = None
        self._outgoing: deque[str] = deque()
        self._outgoing_descriptor: int | None = None
        self._outgoing_left = 0
        link.on_relief.append(self.pump)

    def begin_put(self, message: PutFile) -> None:
        """Opens a file for the parts that follow."""
        self._abandon_put()
        self._incoming = message
        try:
            mode = 0o755 if message.is_executable else 0o644
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptor = open_below(self._root, message.path, flags, mode=mode, makes_parents=True)
            self._incoming_descriptor = descriptor
            with contextlib.suppress(PermissionError):  # some boxes may not; then a file keeps the mode it has
                os.fchmod(descriptor, mode)
        except OSError as error:
            self._put_failed(error)

    def put_bytes(self, data: bytes) -> None:
        """Writes the next part; after a failure the rest is ignored."""
        if self._incoming_descriptor is None:
            return
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._incoming_descriptor, left) :]
        except OSError as error:
            self._put_failed(error)

    def end_put(self) -> None:
        """Closes the file and confirms it."""
        if self._incoming_descriptor is not None and self._incoming is not None:
            os.close(self._incoming_descriptor)
            self._incoming_descriptor = None
            self._link.send(FilePut(self._incoming.path))
        self._incoming = None

    def get(self, path: str) -> None:
        """Sends a file, after those asked for before."""
        self._outgoing.append(path)
        self.pump()

    def list(self, path: str) -> None:
        """Says which regular files are below a folder; follows no links."""
        try:
            found = _files_below(self._root, path)
        except OSError as error:
            self._link.send(FileFailed(path, _reason(error)))
        else:
            self._link.send(FileList(found))

    def pump(self) -> None:
        """Sends parts as long as the peer keeps up."""
        while not self._link.is_congested:
            if self._outgoing_descriptor is None:
                if not self._outgoing:
                    return
                self._open_outgoing(self._outgoing.popleft())
            else:
                self._send_part(self._outgoing_descriptor)

    def _open_outgoing(self, path: str) -> None:
        try:
            self._outgoing_descriptor = open_below(self._root, path, os.O_RDONLY)
            # What is appended from now on is not sent: a file that grows for ever must end.
            self._outgoing_left = os.fstat(self._outgoing_descriptor).st_size
        except OSError as error:
            self._link.send(FileFailed(path, _reason(error)))

    def _send_part(self, descriptor: int) -> None:
        try:
            part = os.read(descriptor, min(FILE_PART_BYTES, self._outgoing_left))
        except OSError:
            part = b""
        self._outgoing_left -= len(part)
        if part:
            self._link.send(FileBytes(part))
        else:
            os.close(descriptor)
            self._outgoing_descriptor = None
            self._link.send(FileEnd())

    def _put_failed(self, error: OSError) -> None:
        assert self._incoming is not None, "only a begun transfer fails"
        self._link.send(FileFailed(self._incoming.path, _reason(error)))
        self._abandon_put()

    def _abandon_put(self) -> None:
        if self._incoming_descriptor is not None:
            os.close(self._incoming_descriptor)
            self._incoming_descriptor = None
        self._incoming = None
