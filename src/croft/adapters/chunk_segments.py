"""The files of a chunk store: segments, to which records are appended and never written over.

A segment begins with a header of 64 bytes that holds its salt. Each record is a header of 128 bytes and its data, and
begins at a multiple of 64 bytes:

    magic 4 | size 4 | owner 32 | key 32 | BLAKE3 of the data, 16 | zeros 24 | BLAKE3 of all that, keyed by the salt, 16

The salt never leaves the machine: nobody can put data that looks like a record. A record that is deleted loses its
header, and its room becomes a hole in the file (`fallocate`). So segments alone tell what is held.
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from blake3 import blake3

from croft.errors import Failed
from croft.ports import CHUNK_BYTES_MAX, Chunk

VERSION = 1
ALIGNMENT_BYTES = 64
SEGMENT_BYTES_MAX = 256 << 20
SEGMENT_MAGIC = b"CROFTSEG"
RECORD_MAGIC = b"CHNK"
SALT_BYTES = 32
DIGEST_BYTES = 16
SCAN_BYTES = 1 << 20
IOVECS_MAX = 512
"""Buffers of one write; every system takes at least 1,024 (IOV_MAX)."""
PAGE_BYTES = 4096
PUNCH_HOLE = 0x02
KEEP_SIZE = 0x01

_SEGMENT = struct.Struct("<8sH6x32s16s")
_RECORD = struct.Struct("<4sI32s32s16s24x16s")
SEGMENT_HEADER_BYTES = _SEGMENT.size
_CHECKED_BYTES = _RECORD.size - DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is: the segment's number, the record's first byte, and the size of its data in bytes."""

    segment: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte that may belong to the next record."""
        return self.offset + record_bytes(self.size)


@dataclass(frozen=True, slots=True)
class Found:
    """A whole record, as a scan finds it."""

    owner: bytes
    key: bytes
    place: Place


def record_bytes(size: int) -> int:
    """What a chunk of `size` bytes takes in a segment."""
    return -(-(_RECORD.size + size) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def digest(data: bytes | memoryview) -> bytes:
    """What tells whether data is still what was put."""
    return blake3(data).digest(length=DIGEST_BYTES)


def segment_name(number: int) -> str:
    """The file's name."""
    return f"{number:08d}.seg"


def segment_numbers(folder: Path) -> list[int]:
    """The segments that are there, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.seg") if path.stem.isdigit())


def sync_data(file: int) -> None:
    """Returns once what was written is on the disk."""
    getattr(os, "fdatasync", os.fsync)(file)


class Segment:
    """One open segment."""

    def __init__(self, number: int, file: int, salt: bytes, path: Path) -> None:
        self.number = number
        self.path = path
        self._file = file
        self._salt = salt
        # Closed when nobody reads from it any more: a number of a file that is used anew would read another one.
        self._close = weakref.finalize(self, os.close, file)

    @classmethod
    def make(cls, folder: Path, number: int, salt: bytes) -> Segment:
        """A new one, on the disk when this returns. Raises OSError."""
        path = folder / segment_name(number)
        head = _SEGMENT.pack(SEGMENT_MAGIC, VERSION, salt, b"\0" * DIGEST_BYTES)[:-DIGEST_BYTES]
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.pwrite(file, head + digest(head), 0)
            os.fsync(file)
            folder_file = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(folder_file)
            finally:
                os.close(folder_file)
        except BaseException:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        return cls(number, file, salt, path)

    @classmethod
    def open(cls, folder: Path, number: int) -> Segment | None:
        """One that is there; None if a power cut has left it without its header, so that it holds nothing.

        Raises:
            Failed: a newer version has written it.
            OSError: it cannot be opened.
        """
        path = folder / segment_name(number)
        file = os.open(path, os.O_RDWR)
        head = os.pread(file, _SEGMENT.size, 0)
        if len(head) == _SEGMENT.size:
            magic, version, salt, check = _SEGMENT.unpack(head)
            if magic == SEGMENT_MAGIC and check == digest(head[:-DIGEST_BYTES]):
                if version == VERSION:
                    return cls(number, file, salt, path)
                os.close(file)
                raise Failed(
                    f"{path} was written by a newer version of Croft", remedy="Update Croft; the file is left as it is."
                )
        os.close(file)
        return None

    @property
    def size(self) -> int:
        """Where the next record begins."""
        return max(_SEGMENT.size, -(-os.fstat(self._file).st_size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)

    def append(self, chunks: Sequence[Chunk], at: int) -> list[Place]:
        """Writes records from byte `at` on; they are on the disk when this returns. Raises OSError."""
        places: list[Place] = []
        waiting: list[bytes | memoryview] = []
        position = at
        for chunk in chunks:
            place = Place(self.number, at, len(chunk.data))
            head = _RECORD.pack(
                RECORD_MAGIC, place.size, chunk.owner, chunk.key, digest(chunk.data), b"\0" * DIGEST_BYTES
            )[:_CHECKED_BYTES]
            padding = b"\0" * (place.end - at - _RECORD.size - place.size)
            waiting += [head + self._check(head), chunk.data, padding]
            places.append(place)
            at = place.end
            if len(waiting) >= IOVECS_MAX:
                position = self._write(waiting, position)
                waiting.clear()
        self._write(waiting, position)
        sync_data(self._file)
        return places

    def read(self, place: Place, offset: int, size: int) -> bytes | None:
        """Part of a record's data; None if it is not what was put, as far as that is checked: the whole is."""
        head = self._head(place.offset)
        if head is None or head[1] != place.size:
            return None
        data = os.pread(self._file, size, place.offset + _RECORD.size + offset)
        is_whole = offset == 0 and size == place.size
        return None if len(data) < size or (is_whole and digest(data) != head[4]) else data

    def scan(self, start: int) -> Iterator[Found]:
        """Every record from byte `start` on whose data is whole; torn ones, holes and foreign bytes are passed over."""
        at, end = max(start, _SEGMENT.size), self.size
        while (at := self._next_magic(at, end)) < end:
            head = self._head(at)
            if head is None:
                at += ALIGNMENT_BYTES
                continue
            _, size, owner, key, expected, _ = head
            place = Place(self.number, at, size)
            data = os.pread(self._file, size, at + _RECORD.size)
            if len(data) == size and digest(data) == expected:
                yield Found(owner, key, place)
            at = place.end

    def forget(self, places: Sequence[Place]) -> None:
        """Takes away the headers of records: no scan finds them again, not even after a power cut. Raises OSError."""
        for place in places:
            os.pwrite(self._file, b"\0" * _RECORD.size, place.offset)
        sync_data(self._file)

    def punch(self, start: int, end: int) -> None:
        """Gives the whole pages between two bytes back to the disk, where the system can."""
        first, last = -(-start // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        allocate = _fallocate()
        if last > first and allocate is not None:
            allocate(self._file, PUNCH_HOLE | KEEP_SIZE, first, last - first)

    def cut(self, at: int) -> None:
        """Drops all from byte `at` on: what could not be written whole. Raises OSError."""
        os.ftruncate(self._file, at)

    def close(self) -> None:
        """Nobody may be reading from it."""
        self._close()

    def _check(self, head: bytes) -> bytes:
        return blake3(head, key=self._salt).digest(length=DIGEST_BYTES)

    def _head(self, at: int) -> tuple[bytes, int, bytes, bytes, bytes, bytes] | None:
        head = os.pread(self._file, _RECORD.size, at)
        if len(head) < _RECORD.size or head[_CHECKED_BYTES:] != self._check(head[:_CHECKED_BYTES]):
            return None
        fields: tuple[bytes, int, bytes, bytes, bytes, bytes] = _RECORD.unpack(head)
        return fields if fields[1] <= CHUNK_BYTES_MAX else None

    def _write(self, buffers: list[bytes | memoryview], at: int) -> int:
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while left:
            written = os.pwritev(self._file, left, at)
            at += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
        return at

    def _next_magic(self, at: int, end: int) -> int:
        """The first multiple of the alignment, from `at` on, where a record may begin; `end` if there is none."""
        while at < end:
            try:
                data_at = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError:
                return end  # nothing but a hole
            at = max(at, data_at // ALIGNMENT_BYTES * ALIGNMENT_BYTES)
            window = os.pread(self._file, SCAN_BYTES, at)
            found = window.find(RECORD_MAGIC)
            while found >= 0 and found % ALIGNMENT_BYTES:
                found = window.find(RECORD_MAGIC, found + 1)
            if found >= 0:
                return at + found
            at += SCAN_BYTES
        return end


@cache
def _fallocate() -> ctypes._NamedFuncPointer | None:
    """The system's call that makes holes; None where there is none, as on macOS."""
    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return call
