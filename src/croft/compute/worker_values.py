"""Loads, inside a box, arguments that are what other tasks have made.

Such a value comes in the safe codec, as its task's runner wrote it; or, where that refers to classes that are not here,
as a pickle by the program whose tasks they are.
"""

from __future__ import annotations

import mmap
import pickle

from croft.errors import CodecError
from croft.wire.values import decode_value

PICKLED = b"\x80"
"""Pickles begin with it. In the safe codec it is an empty dict, and nothing else."""


class ClassesMissing(Exception):
    """A value holds what can only be built where its classes are known."""


def value_of(buffer: mmap.mmap | bytes | bytearray | memoryview) -> object:
    """The value in a buffer; arrays stay where they are in it. Raises ClassesMissing."""
    if bytes(buffer[:1]) == PICKLED and len(buffer) > 1:
        return pickle.loads(buffer)
    try:
        return decode_value(memoryview(buffer))
    except CodecError as error:
        raise ClassesMissing(error.message) from None
