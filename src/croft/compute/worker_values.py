"""Loads, inside a box, arguments that are what other tasks have made, or stored files.

Such a value comes in the safe codec, as its task's runner wrote it; or, where that refers to classes that are not here,
as a pickle by the program whose tasks they are.
"""

from __future__ import annotations

import io
import mmap
import pickle
from typing import Any

from croft.errors import CodecError
from croft.wire.values import decode_value

PICKLED = b"\x80"
"""Pickles begin with it. In the safe codec it is an empty dict, and nothing else."""


class ClassesMissing(Exception):
    """A value holds what can only be built where its classes are known."""


class _Memory(io.RawIOBase):
    """Bytes in memory as a file, without a copy of them."""

    def __init__(self, data: memoryview, name: str) -> None:
        self._data = data
        self._at = 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def getbuffer(self) -> memoryview:
        return self._data


class StoredFile(io.BufferedReader):
    """A stored file, open for reading. `name`: what it is called."""

    raw: _Memory

    def getbuffer(self) -> memoryview:
        """All of its bytes, where they lie."""
        return self.raw.getbuffer()


def file_of(buffer: mmap.mmap | bytes | bytearray | memoryview, name: str) -> StoredFile:
    """What a task is given for a stored file among its arguments."""
    return StoredFile(_Memory(memoryview(buffer).toreadonly(), name))


def value_of(buffer: mmap.mmap | bytes | bytearray | memoryview) -> object:
    """The value in a buffer; arrays stay where they are in it. Raises ClassesMissing."""
    if bytes(buffer[:1]) == PICKLED and len(buffer) > 1:
        return pickle.loads(buffer)
    try:
        return decode_value(memoryview(buffer))
    except CodecError as error:
        raise ClassesMissing(error.message) from None
