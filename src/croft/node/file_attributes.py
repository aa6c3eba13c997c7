"""What a backup keeps of a file besides its bytes: read from the disk, and given back to it. Fit for threads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Final

from croft.storage.backup_formats import Kind, Node

XATTRS_MAX: Final = 64
XATTRS_BYTES_MAX: Final = 256 << 10
HOLE_BYTES_MIN: Final = 64 << 10
HOLES_MAX: Final = 1_000
"""Further ones are read as the zeros that they show."""
BLOCK_BYTES: Final = 512
MODE_MASK: Final = 0o7777
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.FOLDER,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
}


def shown(path: bytes) -> str:
    """A path for people; its bytes need not be text."""
    return path.decode(errors="replace")


def kind_of(info: os.stat_result) -> Kind | None:
    """What it is; None for what is no use to anybody later, as a socket."""
    return _KINDS.get(stat.S_IFMT(info.st_mode))


def node_of(name: bytes, path: bytes, info: os.stat_result, kind: Kind) -> Node:
    """All that is kept of it but for bytes. Raises OSError."""
    is_file = kind is Kind.FILE
    return Node(
        name,
        int(kind),
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        info.st_mtime_ns,
        size=info.st_size if is_file else 0,
        target=os.readlink(path) if kind is Kind.SYMLINK else b"",
        xattrs=xattrs_of(path),
        link=(info.st_dev, info.st_ino) if info.st_nlink > 1 and kind is not Kind.FOLDER else None,
        device=info.st_rdev if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE) else 0,
    )


def xattrs_of(path: bytes) -> list[tuple[bytes, bytes]]:
    """Extended attributes, access lists among them, as far as this system tells them."""
    if not hasattr(os, "listxattr"):
        return []
    found: list[tuple[bytes, bytes]] = []
    room = XATTRS_BYTES_MAX
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []  # this file system has none
    for name in sorted(names)[:XATTRS_MAX]:
        try:
            value = os.getxattr(path, name, follow_symlinks=False)
        except OSError:
            continue  # not for us to read, or gone meanwhile
        room -= len(value)
        if room >= 0:
            found.append((os.fsencode(name), value))
    return found


def holes_of(descriptor: int, info: os.stat_result) -> list[tuple[int, int]]:
    """(offset, length) of the large holes of a sparse file."""
    if info.st_blocks * BLOCK_BYTES >= info.st_size or not hasattr(os, "SEEK_HOLE"):
        return []
    holes: list[tuple[int, int]] = []
    at = 0
    try:
        while at < info.st_size and len(holes) < HOLES_MAX:
            start = os.lseek(descriptor, at, os.SEEK_HOLE)
            if start >= info.st_size:
                break
            try:
                at = os.lseek(descriptor, start, os.SEEK_DATA)
            except OSError:
                at = info.st_size  # a hole up to the end
            if at - start >= HOLE_BYTES_MIN:
                holes.append((start, at - start))
    except OSError:
        pass  # this file system does not tell
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return holes


def spans(size: int, holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, length) of what lies between the holes of a file."""
    found: list[tuple[int, int]] = []
    at = 0
    for start, length in holes:
        if start > at:
            found.append((at, start - at))
        at = max(at, start + length)
    if size > at:
        found.append((at, size - at))
    return found


def apply_attributes(path: bytes, node: Node, problems: list[str], shown_path: bytes = b"") -> None:
    """Gives a file what it had; what this system or user may not give is said, and does not stop the rest."""
    name_shown = shown(shown_path or path)
    # The mode comes after the attributes, which need leave to write, and after the owner, who takes setuid away.
    try:
        if os.geteuid() == 0:
            os.chown(path, node.uid, node.gid, follow_symlinks=False)
    except OSError as error:
        problems.append(f"{name_shown}: its owner cannot be set: {error.strerror}")
    for name, value in node.xattrs if hasattr(os, "setxattr") else ():
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            problems.append(f"{name_shown}: attribute {shown(name)} cannot be set: {error.strerror}")
    try:
        if node.kind != Kind.SYMLINK:
            os.chmod(path, node.mode & MODE_MASK)
    except OSError as error:
        problems.append(f"{name_shown}: its mode cannot be set: {error.strerror}")
    try:
        os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)
    except OSError as error:
        problems.append(f"{name_shown}: its time cannot be set: {error.strerror}")
