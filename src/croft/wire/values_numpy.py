"""Takes numpy arrays and scalars apart into dtype, shape and bytes, and rebuilds them with every length checked.

numpy is imported here, so this module is imported only when an array is at hand. Dtypes that hold Python objects
do not pass in either direction. Byte order, alignment, field offsets and Fortran order are kept; a rebuilt array
owns its memory and is writable. Metadata attached to a dtype is not carried.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from croft.errors import CodecError

try:
    import numpy as np
except ImportError:
    raise CodecError(
        "the result holds a numpy array, and numpy is not installed here",
        remedy="Install numpy, or return lists (`array.tolist()`).",
    ) from None

DIMENSIONS_MAX: Final = 32
FIELDS_MAX: Final = 1_000
DTYPE_DEPTH_MAX: Final = 16
ITEM_BYTES_MAX: Final = 1 << 30
_SIMPLE: Final = re.compile(r"[<>|=]([biufcSUV]\d{1,10}|[mM]8(\[\d{0,9}[A-Za-zμ]{1,7}\])?)")


def describe(value: Any) -> list[Any]:
    """Dtype, shape, order and bytes of an array; dtype and bytes of a scalar. ValueError if it is neither."""
    if type(value) is np.ndarray:
        is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        if value.dtype.names is not None:
            value = _without_padding(value)
        return [
            _dtype_fields(value.dtype),
            list(value.shape),
            is_fortran,
            value.tobytes("F" if is_fortran else "C"),
        ]
    # Trailing zeros of text are lost in numpy's own buffers, so these two travel as what they are.
    if type(value) is np.str_:
        return ["str", str.__str__(value).encode("utf-8", "surrogatepass")]
    if type(value) is np.bytes_:
        return ["bytes", bytes(value)]
    if type(value) is not value.dtype.type:
        raise ValueError(f"object of type {type(value).__module__}.{type(value).__qualname__}")
    fields = _dtype_fields(value.dtype)
    if value.dtype.names is not None:
        value = _without_padding(value)
    return [fields, value.tobytes()]


def is_one_piece(value: Any) -> bool:
    """Whether an array's bytes lie in memory as they would travel, so that they can be sent from there."""
    is_simple = value.dtype.names is None and not value.dtype.hasobject and value.dtype.itemsize > 0
    return is_simple and bool(value.flags.c_contiguous or value.flags.f_contiguous)


def describe_attached(value: Any, buffers: list[memoryview]) -> list[Any]:
    """Dtype, shape and order of an array, and where among `buffers` its bytes now are."""
    is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    flat = (value.T if is_fortran else value).reshape(-1)
    buffers.append(flat.view(np.uint8).data)
    return [_dtype_fields(value.dtype), list(value.shape), is_fortran, len(buffers) - 1]


def _without_padding(value: Any) -> Any:
    """A copy whose bytes between fields are zero: what lies there is chance, and equal arrays want equal bytes."""
    if value.dtype.hasobject:
        return value
    clean = np.zeros(value.shape, value.dtype)
    clean[...] = value
    return clean


def rebuild_array(content: list[Any]) -> object:
    """The array. Raises CodecError, ValueError or TypeError if the parts do not fit each other."""
    fields, shape, is_fortran, buffer = content
    return _array(_dtype(fields), shape, bool(is_fortran), buffer)


def rebuild_attached(content: list[Any], buffers: list[memoryview | None]) -> object:
    """The array, on top of its buffer, which no other array may claim. Raises CodecError, ValueError or TypeError."""
    fields, shape, is_fortran, number = content
    buffer = buffers[number] if type(number) is int and 0 <= number < len(buffers) else None
    if buffer is None:
        raise CodecError("an array without its bytes")
    buffers[number] = None
    if buffer.readonly:
        return _array(_dtype(fields), shape, bool(is_fortran), bytes(buffer))
    return _view(_dtype(fields), shape, bool(is_fortran), buffer)


def rebuild_scalar(content: list[Any]) -> object:
    """The scalar. Raises CodecError, ValueError or TypeError if the parts do not fit each other."""
    fields, buffer = content
    if fields == "str":
        return np.str_(buffer.decode("utf-8", "surrogatepass"))
    if fields == "bytes":
        return np.bytes_(buffer)
    return _array(_dtype(fields), [], False, buffer)[()]


def _array(dtype: Any, shape: Any, is_fortran: bool, buffer: Any) -> Any:
    if type(buffer) is not bytes:
        raise CodecError("an array's shape does not fit its bytes")
    return _view(dtype, shape, is_fortran, buffer).copy(order="K")


def _view(dtype: Any, shape: Any, is_fortran: bool, buffer: bytes | memoryview) -> Any:
    if type(shape) is not list or len(shape) > DIMENSIONS_MAX or not all(type(n) is int and n >= 0 for n in shape):
        raise CodecError("an array without a shape")
    if math.prod(shape) * dtype.itemsize != len(buffer):
        raise CodecError("an array's shape does not fit its bytes")
    # A dtype may take no room at all; numpy then still wants one byte to point at.
    return np.ndarray(shape, dtype, buffer or b"\0", order="F" if is_fortran else "C")


def _dtype_fields(dtype: Any, depth: int = 0) -> Any:
    """A dtype as text, as ["sub", base, shape], or as ["struct", size, is_aligned, [[name, title, offset, dtype]…]]."""
    if dtype.hasobject or depth > DTYPE_DEPTH_MAX:
        raise ValueError(f"numpy array of dtype {dtype}, which holds Python objects")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ["sub", _dtype_fields(base, depth + 1), list(shape)]
    if dtype.names is not None:
        columns = []
        for name in dtype.names:
            kind, offset, *title = dtype.fields[name]
            columns.append([name, title[0] if title else None, offset, _dtype_fields(kind, depth + 1)])
        return ["struct", dtype.itemsize, bool(dtype.isalignedstruct), columns]
    if _SIMPLE.fullmatch(dtype.str) is None:
        raise ValueError(f"numpy array of dtype {dtype}")
    return dtype.str


def _dtype(fields: Any, depth: int = 0) -> Any:
    if depth > DTYPE_DEPTH_MAX:
        raise CodecError("a dtype nested too deeply")
    if type(fields) is str:
        if _SIMPLE.fullmatch(fields) is None:
            raise CodecError(f"the dtype {fields[:40]!r} is not carried")
        dtype = np.dtype(fields)
    elif type(fields) is list and fields[:1] == ["sub"]:
        _, base, shape = fields
        if type(shape) is not list or not 0 < len(shape) <= DIMENSIONS_MAX:
            raise CodecError("a dtype with a bad shape")
        inner = _dtype(base, depth + 1)
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * inner.itemsize > ITEM_BYTES_MAX:
            raise CodecError("a dtype with a bad shape")
        dtype = np.dtype((inner, tuple(shape)))
    elif type(fields) is list and fields[:1] == ["struct"]:
        dtype = _structured(fields, depth)
    else:
        raise CodecError("an array without a dtype")
    if dtype.hasobject or dtype.itemsize > ITEM_BYTES_MAX:
        raise CodecError(f"the dtype {dtype} is not carried")
    return dtype


def _structured(fields: list[Any], depth: int) -> Any:
    _, size, is_aligned, columns = fields
    if type(columns) is not list or len(columns) > FIELDS_MAX or type(size) is not int or size > ITEM_BYTES_MAX:
        raise CodecError("a dtype with bad fields")
    names, titles, offsets, kinds = [], [], [], []
    for name, title, offset, kind in columns:
        if type(name) is not str or type(title) not in (str, type(None)) or type(offset) is not int or offset < 0:
            raise CodecError("a dtype with bad fields")
        names.append(name)
        titles.append(title)
        offsets.append(offset)
        kinds.append(_dtype(kind, depth + 1))
    layout = {"names": names, "formats": kinds, "offsets": offsets, "itemsize": size}
    if any(title is not None for title in titles):
        layout["titles"] = titles
    return np.dtype(layout, align=bool(is_aligned))
