"""The program inside a builder's box: unpacks wheels into its current folder, and nothing else.

Started by path as `python -sEP environment_builder.py FD BYTES_MAX FILES_MAX [NAME DIGEST PATH]...`. Nothing of a wheel
runs here. It answers with one frame on the inherited socket FD: `Built`, or `NotBuilt` with the wheel and the reason.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import posixpath
import py_compile
import stat
import sys
import zipfile
from dataclasses import dataclass, field

if __name__ == "__main__" and not __package__:
    # Started by path, perhaps under an interpreter in which Croft is not installed.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from blake3 import blake3

from croft.compute.environment_messages import BuilderAnswer, Built, NotBuilt
from croft.wire.codec import encode
from croft.wire.frames import frame

READ_BYTES = 1 << 20
NAME_BYTES_MAX = 1024
DEPTH_MAX = 40
RECORD_BYTES_MAX = 64 << 20
SIGNATURES = ("RECORD.jws", "RECORD.p7s")
RECORD_HASHES = ("sha256", "sha384", "sha512")
ENCRYPTED_FLAG = 1
PYTHON_LINE = b"#!/usr/bin/env python3\n"
NEVER_IMPORTED = {"tests", "test"}
"""Folders whose modules are not compiled: nobody but their own developers imports them."""


class BadWheel(Exception):
    """Its text says what is wrong with the wheel."""


@dataclass(slots=True)
class Room:
    """What may still be written."""

    bytes_left: int
    files_left: int
    files: int = 0
    size_bytes: int = 0
    modules: list[str] = field(default_factory=list)

    def take_file(self) -> None:
        """One more file. Raises BadWheel."""
        self.files += 1
        if self.files > self.files_left:
            raise BadWheel(f"more than {self.files_left:,} files in all")

    def take(self, size: int) -> None:
        """So many more bytes. Raises BadWheel."""
        self.size_bytes += size
        if self.size_bytes > self.bytes_left:
            raise BadWheel(f"unpacked, it takes more than the {self.bytes_left:,} bytes that are allowed")


def unpack(path: str, name: str, root: str, room: Room) -> None:
    """Unpacks one wheel below `root`: every file that RECORD lists, with just the content that it says.

    Raises BadWheel. What it has written by then stays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            info, data = _folders(name, entries)
            record = _record(archive, f"{info}/RECORD")
            unhashed = {f"{info}/{one}" for one in ("RECORD", *SIGNATURES)}
            unlisted = entries.keys() - record.keys() - unhashed
            if unlisted:
                raise BadWheel(f"its RECORD does not list {min(unlisted)}")
            if absent := record.keys() - entries.keys() - unhashed:
                raise BadWheel(f"its RECORD lists {min(absent)}, which is not there")
            for entry, details in entries.items():
                place = _place(entry, data)
                if place is not None:
                    wanted = None if entry in unhashed else record[entry]
                    room.take_file()
                    _extract(archive, details, posixpath.join(root, place), wanted, room)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, EOFError, ValueError) as error:
        raise BadWheel(f"it is no sound zip archive: {error}") from None
    except OSError as error:
        raise BadWheel(f"it cannot be unpacked: {error.strerror or error}") from None
    except Exception as error:
        if isinstance(error, BadWheel):
            raise
        raise BadWheel(f"it cannot be read: {error!r}") from None


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files by name. Raises BadWheel for any name or kind of file that has no business in a wheel."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for details in archive.infolist():
        name = details.filename
        kind = stat.S_IFMT(details.external_attr >> 16)
        if name.endswith("/") and kind in (0, stat.S_IFDIR):
            _check_name(name.rstrip("/"))
            continue
        _check_name(name)
        if kind not in (0, stat.S_IFREG):
            raise BadWheel(f"{name!r} is no regular file: links and devices have no place in a wheel")
        if details.flag_bits & ENCRYPTED_FLAG:
            raise BadWheel(f"{name!r} is encrypted")
        if details.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadWheel(f"{name!r} is compressed in a way that wheels are not")
        if name in entries:
            raise BadWheel(f"{name!r} is there twice")
        entries[name] = details
    return entries


def _check_name(name: str) -> None:
    parts = name.split("/")
    is_plain = not any(part in ("", ".", "..") for part in parts) and not any(c in name for c in "\\\0:")
    if not is_plain or not name.isprintable():
        raise BadWheel(f"{name!r} is a path that could lead out of its folder")
    if len(parts) > DEPTH_MAX or len(name.encode()) > NAME_BYTES_MAX or max(len(part.encode()) for part in parts) > 255:
        raise BadWheel(f"a path of {len(parts)} folders and {len(name)} characters is too long")


def _folders(name: str, entries: dict[str, zipfile.ZipInfo]) -> tuple[str, str]:
    """The `.dist-info` and the `.data` folder. Raises BadWheel."""
    tops = {entry.partition("/")[0] for entry in entries if "/" in entry}
    infos = [top for top in tops if top.endswith(".dist-info")]
    if len(infos) != 1 or f"{infos[0]}/RECORD" not in entries or f"{infos[0]}/WHEEL" not in entries:
        raise BadWheel("it has not just one .dist-info folder with RECORD and WHEEL in it")
    stem = infos[0].removesuffix(".dist-info")
    named = "-".join(name.split("-")[:2])
    if _normal(stem) != _normal(named):
        raise BadWheel(f"it is called {named} and holds {stem}")
    return infos[0], f"{stem}.data"


def _normal(stem: str) -> str:
    return stem.replace("-", "_").replace(".", "_").lower()


def _record(archive: zipfile.ZipFile, name: str) -> dict[str, str]:
    """What RECORD says of each file: `sha256=…`. Raises BadWheel."""
    with archive.open(name) as file:
        raw = file.read(RECORD_BYTES_MAX + 1)
    if len(raw) > RECORD_BYTES_MAX:
        raise BadWheel("its RECORD is too long")
    record: dict[str, str] = {}
    for row in csv.reader(io.StringIO(raw.decode())):
        if not row:
            continue
        if len(row) != 3 or row[0] in record:
            raise BadWheel("its RECORD is not three columns, or names a file twice")
        record[row[0]] = row[1]
    return record


def _place(entry: str, data: str) -> str | None:
    """Where a file of the wheel belongs in the environment; None for what nothing here uses."""
    parts = entry.split("/")
    if parts[0] != data:
        return entry
    if len(parts) < 3:
        raise BadWheel(f"{entry!r} is in no scheme")
    match parts[1]:
        case "purelib" | "platlib" | "data":
            return "/".join(parts[2:])
        case "scripts":
            return "/".join(["bin", *parts[2:]])
        case _:
            return None


def _extract(archive: zipfile.ZipFile, details: zipfile.ZipInfo, place: str, wanted: str | None, room: Room) -> None:
    os.makedirs(posixpath.dirname(place), 0o755, exist_ok=True)
    hasher = None
    if wanted is not None:
        algorithm, _, expected = wanted.partition("=")
        if algorithm not in RECORD_HASHES:
            raise BadWheel(f"its RECORD has no hash of {details.filename!r} that is good enough")
        hasher = hashlib.new(algorithm)
    is_script = False
    # Never through a link or into a file that stands elsewhere: an earlier file of that name goes.
    if os.path.lexists(place):
        os.unlink(place)
    with archive.open(details) as source, open(place, "xb") as file:
        while part := source.read(READ_BYTES):
            room.take(len(part))
            if hasher is not None:
                hasher.update(part)
            if file.tell() == 0 and part.startswith(b"#!python"):
                is_script = True
                part = PYTHON_LINE + part.partition(b"\n")[2]
            file.write(part)
    if hasher is not None:
        found = base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
        if found != expected:
            raise BadWheel(f"{details.filename!r} is not what its RECORD says")
    if is_script or details.external_attr >> 16 & stat.S_IXUSR:
        os.chmod(place, 0o755)
    if place.endswith(".py"):
        room.modules.append(place)


def compile_all(root: str, modules: list[str]) -> None:
    """Compiles what may be imported, so that no box has to: a box cannot keep what it compiles."""
    for module in modules:
        if NEVER_IMPORTED.isdisjoint(module.removeprefix(root).split("/")):
            # What is no Python of this version fails when it is imported, not here.
            py_compile.compile(
                module, doraise=False, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )


def build(root: str, room: Room, wheels: list[tuple[str, str, str]]) -> BuilderAnswer:
    """Unpacks all wheels, (name, digest in hex, path) each, below `root`."""
    for name, digest, path in wheels:
        try:
            if blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest() != digest:
                return NotBuilt(name, "it is not what its digest says", is_damaged=True)
            unpack(path, name, root, room)
        except BadWheel as bad:
            return NotBuilt(name, str(bad))
        except OSError as error:
            return NotBuilt(name, f"it cannot be read: {error}", is_damaged=True)
    compile_all(root, room.modules)
    return Built(room.files, room.size_bytes)


def main() -> int:
    """Builds, and says how it went; returns the exit code."""
    descriptor, bytes_max, files_max = map(int, sys.argv[1:4])
    rest = sys.argv[4:]
    os.umask(0o022)
    answer = build(os.getcwd(), Room(bytes_max, files_max), list(zip(rest[::3], rest[1::3], rest[2::3], strict=True)))
    message = memoryview(frame(encode(answer)))
    while message:
        message = message[os.write(descriptor, message) :]
    # The peer reads the answer and closes the box; nothing is lost by waiting for that.
    os.read(descriptor, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
