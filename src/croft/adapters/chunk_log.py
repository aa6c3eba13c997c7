"""What a chunk store does on the disk, step by step: one thread writes, several may read.

Put: append to the newest segment, sync it, then enter the index. Delete: leave the index, synced; then the segment.
So what is acknowledged survives a power cut at any moment, and the index never speaks of what is not on the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from croft.adapters.chunk_index import ChunkIndex
from croft.adapters.chunk_segments import (
    SALT_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_HEADER_BYTES,
    Found,
    Place,
    Segment,
    record_bytes,
    segment_name,
    segment_numbers,
)
from croft.adapters.sqlite_database import explained
from croft.errors import Failed, NotFound
from croft.ports import Chunk

T = TypeVar("T")

log = logging.getLogger(__name__)

INDEX_NAME = "index.db"
OPEN_SEGMENTS_MAX = 64
FOUND_AT_ONCE = 1000
"""Records that one transaction enters when the index is made anew."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class ChunkLog:
    """One folder of segments and their index; made by its constructor, which raises Failed.

    `token` gives random bytes. Only one thread at a time may change it; `read` and the questions may be asked by many.
    """

    def __init__(self, folder: Path, token: Callable[[int], bytes], segment_bytes_max: int = SEGMENT_BYTES_MAX) -> None:
        self._folder = folder
        self._token = token
        self._segment_bytes_max = segment_bytes_max
        self._open: OrderedDict[int, Segment] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = threading.local()
        self._all_readers: list[ChunkIndex] = []
        self._active: Segment | None = None
        with self._explained():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._index = self._open_index()
            self._catch_up()
            self._bury()

    def close(self) -> None:
        """Closes the index; nothing is under way any more."""
        for index in (*self._all_readers, self._index):
            index.close()
        for segment in self._open.values():
            segment.close()
        self._open.clear()
        self._active = None

    # --- by the one thread that writes -------------------------------------------------------------------------------

    def put(self, chunks: Sequence[Chunk]) -> None:
        """On the disk when it returns. Raises Failed."""
        with self._explained():
            wanted: dict[tuple[bytes, bytes], Chunk] = {}
            for chunk in chunks:
                held = self._index.find(chunk.owner, chunk.key)
                if held is None or held[1]:
                    wanted.setdefault((chunk.owner, chunk.key), chunk)
            if wanted:
                self._append(list(wanted.values()))

    def delete(self, owner: bytes, keys: Sequence[bytes]) -> int:
        """The bytes whose room is given back. Raises Failed."""
        with self._explained():
            with self._index.change(is_synced=True):
                dropped = [place for key in keys if (place := self._index.drop(owner, key)) is not None]
            self._bury()
        return sum(record_bytes(place.size) for place in dropped)

    def mark_damaged(self, owner: bytes, key: bytes) -> None:
        """What is put under this key is written anew. Raises Failed."""
        with self._explained(), self._index.change():
            self._index.damaged(owner, key)

    # --- by any thread -----------------------------------------------------------------------------------------------

    def read(self, owner: bytes, key: bytes, offset: int, size: int | None) -> bytes | None:
        """Part of a chunk, None if it is damaged. Raises NotFound, Failed."""
        with self._explained():
            held = self._questions.find(owner, key)
            if held is None:
                raise NotFound(f"chunk {key.hex()[:16]} is not held here")
            place, _ = held
            offset = min(offset, place.size)
            wanted = min(place.size - offset, place.size if size is None else size)
            try:
                segment = self._segment(place.segment)
            except FileNotFoundError:
                segment = None
            data = None if segment is None else segment.read(place, offset, wanted)
            if data is None and self._questions.find(owner, key) is None:
                raise NotFound(f"chunk {key.hex()[:16]} was deleted while it was read")
            return data

    def answer(self, ask: Callable[[ChunkIndex], T]) -> T:
        """What the index says. Raises Failed."""
        with self._explained():
            return ask(self._questions)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _questions(self) -> ChunkIndex:
        """The index, for the thread that asks."""
        index: ChunkIndex | None = getattr(self._readers, "index", None)
        if index is None:
            index = self._readers.index = ChunkIndex(self._folder / INDEX_NAME, is_reader=True)
            self._all_readers.append(index)
        return index

    def _append(self, chunks: list[Chunk]) -> None:
        while chunks:
            segment = self._with_room(record_bytes(len(chunks[0].data)))
            start = end = segment.size
            count = 0
            while count < len(chunks) and (count == 0 or end <= self._segment_bytes_max):
                end += record_bytes(len(chunks[count].data))
                count += 1
            self._append_to(segment, chunks[:count], start)
            chunks = chunks[count:]
        self._bury()

    def _with_room(self, needed: int) -> Segment:
        """The segment to append to: a new one if the last has no room."""
        last = self._active
        if last is not None and last.size + needed <= self._segment_bytes_max:
            return last
        number = max(segment_numbers(self._folder), default=0) + 1
        self._active = segment = Segment.make(self._folder, number, self._token(SALT_BYTES))
        self._keep_open(segment)
        if last is not None:
            self._unlink_if_empty(last.number)
        return segment

    def _append_to(self, segment: Segment, chunks: list[Chunk], start: int) -> None:
        try:
            places = segment.append(chunks, start)
            found = [Found(chunk.owner, chunk.key, place) for chunk, place in zip(chunks, places, strict=True)]
            with self._index.change():
                self._index.add(found, segment.number, places[-1].end)
        except BaseException:
            # After a failed sync nobody knows what is on the disk: nothing follows in this file.
            self._active = None
            segment.cut(start)
            raise

    def _bury(self) -> None:
        """Gives back the room of what is deleted."""
        dying = self._index.dying()
        if not dying:
            return
        by_segment: dict[int, list[Place]] = {}
        for place in dying:
            by_segment.setdefault(place.segment, []).append(place)
        for number, places in by_segment.items():
            if self._unlink_if_empty(number):
                continue
            segment = self._segment(number)
            if segment is not None:
                segment.forget(places)
                for start, end in {self._index.gap(place) for place in places}:
                    segment.punch(start, segment.size if end is None else end)
            with self._index.change():
                self._index.died(places)

    def _unlink_if_empty(self, number: int) -> bool:
        # The newest stays: its number must not be used again before the index is sure to have forgotten it.
        if number == max(segment_numbers(self._folder), default=number) or not self._index.is_empty(number):
            return False
        with self._lock:
            self._open.pop(number, None)
        (self._folder / segment_name(number)).unlink(missing_ok=True)
        with self._index.change():
            self._index.forget_segment(number)
        return True

    def _segment(self, number: int) -> Segment | None:
        with self._lock:
            segment = self._open.get(number)
            if segment is not None:
                self._open.move_to_end(number)
                return segment
        segment = Segment.open(self._folder, number)
        if segment is not None:
            self._keep_open(segment)
        return segment

    def _keep_open(self, segment: Segment) -> None:
        with self._lock:
            self._open[segment.number] = segment
            while len(self._open) > OPEN_SEGMENTS_MAX:
                self._open.popitem(last=False)

    def _open_index(self) -> ChunkIndex:
        path = self._folder / INDEX_NAME
        try:
            return ChunkIndex(path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            log.warning("%s is damaged, and made anew from the segments", path)
            for file in self._folder.glob(f"{INDEX_NAME}*"):
                file.unlink()
            return ChunkIndex(path)

    def _catch_up(self) -> None:
        """Reads what the index does not know yet; sees that it speaks of no file that is gone."""
        numbers = segment_numbers(self._folder)
        for gone in self._index.segments() - set(numbers):
            log.warning("%s is gone, with the chunks that it held", self._folder / segment_name(gone))
            with self._index.change():
                self._index.forget_segment(gone)
        for number in numbers:
            path = self._folder / segment_name(number)
            if path.stat().st_size < SEGMENT_HEADER_BYTES:
                path.unlink()  # a power cut while it was made
                continue
            segment = Segment.open(self._folder, number)
            if segment is None:
                log.warning("%s has a damaged header; it is left as it is, and its chunks cannot be read", path)
                continue
            self._take_in(segment)
            is_last = number == numbers[-1]
            if is_last and segment.size < self._segment_bytes_max:
                self._active = segment
                self._keep_open(segment)

    def _take_in(self, segment: Segment) -> None:
        start, end = self._index.scanned(segment.number), segment.size
        if start >= end:
            return
        batch: list[Found] = []
        for found in segment.scan(start):
            batch.append(found)
            if len(batch) >= FOUND_AT_ONCE:
                with self._index.change():
                    self._index.add(batch, segment.number, found.place.end)
                batch.clear()
        with self._index.change():
            self._index.add(batch, segment.number, end)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise Failed(
                    f"the disk of {self._folder} is full", remedy="Free some space there, or lend less of it."
                ) from error
            raise Failed(
                f"cannot use {self._folder}: {os.strerror(error.errno or errno.EIO)}",
                remedy="Check the disk's health, and that the folder can be written.",
            ) from error
        except sqlite3.Error as error:
            raise explained(error, str(self._folder / INDEX_NAME)) or error from error
