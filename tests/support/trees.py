"""Folder trees with all that a file system has, and what is to be the same of them afterwards."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from random import Random

ODD_NAMES = [b"\xff\xfe not text", b"new\nline", "ünïcødé".encode(), b" blank ", b"-rf"]
YEAR_1999_NS = 915_148_800_123_456_789


def make_tree(folder: Path, seed: int, files: int, size_max: int) -> None:
    """Some folders of files of random bytes, and beside them one thing of each kind."""
    random = Random(seed)
    folder.mkdir(parents=True)
    for number in range(files):
        path = folder / f"folder{number % 7}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random.randbytes(random.randrange(size_max)))
    odd = folder / "odd"
    odd.mkdir()
    for name in ODD_NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(odd), name))).write_bytes(name * 3)
    (odd / "nothing").mkdir()
    (odd / "empty file").touch()
    (odd / "one byte").write_bytes(b"1")
    (odd / "program").write_bytes(b"#!/bin/sh\n")
    (odd / "program").chmod(0o4751)
    os.symlink("program", odd / "link")
    os.symlink("nowhere/at/all", odd / "dangling")
    os.link(odd / "program", odd / "same file")
    os.mkfifo(odd / "pipe")
    with (odd / "sparse").open("wb") as file:
        file.write(random.randbytes(300_000))
        file.seek(2 << 20)
        file.write(b"in the middle")
        file.truncate(5 << 20)
    os.setxattr(odd / "one byte", "user.colour", b"red\0blue")
    os.utime(odd / "one byte", ns=(YEAR_1999_NS, YEAR_1999_NS))
    os.utime(odd / "link", ns=(YEAR_1999_NS, YEAR_1999_NS + 1), follow_symlinks=False)
    (odd / "nothing").chmod(0o500)
    os.utime(odd / "nothing", ns=(YEAR_1999_NS, YEAR_1999_NS + 2))
    os.utime(folder, ns=(YEAR_1999_NS, YEAR_1999_NS + 3))


def state_of(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """All that is to come back, by the path inside."""
    found: dict[bytes, tuple[object, ...]] = {}
    first_name: dict[int, bytes] = {}
    top = os.fsencode(folder)
    for place, folders, files in sorted(os.walk(top)):
        for name in sorted([*folders, *files]) + ([b"."] if place == top else []):
            path = os.path.join(place, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            inside = os.path.relpath(path, top)
            bytes_of: object = None
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    bytes_of = file.read()
            elif kind == stat.S_IFLNK:
                bytes_of = os.readlink(path)
            linked = first_name.setdefault(info.st_ino, inside) if kind == stat.S_IFREG else None
            attributes = {
                one: os.getxattr(path, one, follow_symlinks=False) for one in os.listxattr(path, follow_symlinks=False)
            }
            found[inside] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, linked, attributes, bytes_of)
    return found
