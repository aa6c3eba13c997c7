"""How results and exceptions of workers come to the user's program: by the safe codec, so that none of their code runs.

What the codec carries (`croft.wire.values`), and besides pandas' frames, series and indexes, taken apart into arrays of
NumPy and plain lists. Exceptions come back as such if their class is known, with the worker's traceback as text.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from croft.client.serialise import exception_of
from croft.compute.worker_messages import RemoteException
from croft.errors import CodecError, CroftError, TooLarge
from croft.wire.codec import encode
from croft.wire.values import decode_value, encode_in_parts, encode_value

if TYPE_CHECKING:
    import pandas

CARRIED = "croft"
REFUSED = "croft-refused"
"""Names of serializers in Dask's headers: a value in the safe codec, or the reason why it is not carried."""
DEPTH_MAX = 100
REMEDY = 'Return plain data, arrays or data frames; or, from peers that you trust with your account: trust="pickle".'
NUMPY_KINDS = "biufcmM"
PANDAS_DTYPES = frozenset(
    {"object", "str", "string", "boolean", "Float32", "Float64"}
    | {f"{sign}nt{n}" for sign in ("I", "UI") for n in (8, 16, 32, 64)}
)


@dataclass(frozen=True)
class CarriedColumn:
    """One array of pandas. `dtype` "": the values are an array of NumPy; "category": codes, and `categories`;
    "range": start, stop and step of an index."""

    name: Any
    values: Any
    dtype: str = ""
    categories: Any = None
    is_ordered: bool = False


@dataclass(frozen=True)
class CarriedFrame:
    """A frame, a series (one column), or an index (no columns). `index`: its levels; None: 0, 1, 2, …"""

    kind: str
    columns: list[CarriedColumn]
    index: list[CarriedColumn] | None
    rows: int = 0
    names: Any = None
    """What the axis of columns is called."""


@dataclass(frozen=True)
class CarriedError:
    """An exception; `remote` is an encoded `RemoteException`."""

    remote: bytes


def pack(value: object) -> tuple[dict[str, Any], list[bytes]]:
    """A header and frames in Dask's manner; what cannot be carried becomes the reason why."""
    try:
        return {"serializer": CARRIED}, [b"".join(encode_in_parts(_lowered(value, 0)))]
    except CroftError as error:
        return {"serializer": REFUSED}, [error.message.encode()]


def unpack(header: Any, frames: Any) -> Any:
    """The value. Runs no code of the sender's. Raises CodecError for what is not carried, or not so."""
    serializer = header.get("serializer") if isinstance(header, dict) else None
    frames = list(frames)
    if serializer == REFUSED and frames:
        reason = bytes(frames[0][:1000]).decode(errors="replace")
        raise CodecError(f"a worker's result is not carried: {reason}", remedy=REMEDY)
    if serializer != CARRIED or not frames:
        raise CodecError(f"what a worker sent is serialised by {str(serializer)[:40]!r}", remedy=REMEDY)
    whole = frames[0] if len(frames) == 1 else bytearray().join(frames)
    return _raised(decode_value(whole), 0)


def pack_error(error: BaseException | None, text: str) -> tuple[dict[str, Any], list[bytes]]:
    """The same for an exception, with its traceback as text."""
    kind = type(error)
    try:
        arguments = encode_value(tuple(error.args) if error is not None else ())
    except (CodecError, TooLarge):
        arguments = b""
    remote = RemoteException(kind.__module__, kind.__qualname__, str(error), text, arguments)
    return pack(CarriedError(encode(remote)))


def text_of(error: BaseException) -> str:
    """A traceback as text."""
    return "".join(traceback.format_exception(error))


def _lowered(value: Any, depth: int) -> Any:
    kind = type(value)
    if depth < DEPTH_MAX:
        if kind is list or kind is tuple:
            return kind(_lowered(item, depth + 1) for item in value)
        if kind is dict:
            return {key: _lowered(item, depth + 1) for key, item in value.items()}
    if kind.__module__.partition(".")[0] == "pandas":
        return _taken_apart(value)
    return value


def _raised(value: Any, depth: int) -> Any:
    kind = type(value)
    if depth < DEPTH_MAX:
        if kind is list or kind is tuple:
            return kind(_raised(item, depth + 1) for item in value)
        if kind is dict:
            return {key: _raised(item, depth + 1) for key, item in value.items()}
    if kind is CarriedFrame:
        try:
            return _put_together(value)
        except Exception as error:  # pandas has many ways to say that it was given nonsense
            raise CodecError(f"a worker's frame makes no sense: {error}") from None
    if kind is CarriedError:
        return exception_of(value.remote, "on a worker")
    return value


def _taken_apart(value: Any) -> Any:
    import pandas

    match value:
        case pandas.DataFrame():
            columns = [_column(name, column.array) for name, column in value.items()]
            return CarriedFrame("frame", columns, _levels(value.index), len(value), value.columns.name)
        case pandas.Series():
            return CarriedFrame("series", [_column(value.name, value.array)], _levels(value.index), len(value))
        case pandas.Index():
            return CarriedFrame("index", [], _levels(value), len(value))
    return value


def _levels(index: pandas.Index[Any]) -> list[CarriedColumn] | None:
    import pandas

    if isinstance(index, pandas.RangeIndex):
        if index.start == 0 and index.step == 1 and index.name is None:
            return None
        return [CarriedColumn(index.name, [index.start, index.stop, index.step], "range")]
    if isinstance(index, pandas.MultiIndex):
        return [_column(name, index.get_level_values(n).array) for n, name in enumerate(index.names)]
    return [_column(index.name, index.array)]


def _column(name: Any, array: Any) -> CarriedColumn:
    import pandas

    dtype = array.dtype
    if isinstance(array, pandas.arrays.NumpyExtensionArray):
        dtype = dtype.numpy_dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        kinds = _column(None, dtype.categories.array)
        return CarriedColumn(name, array.codes, "category", kinds, bool(dtype.ordered))
    if getattr(dtype, "kind", "") in NUMPY_KINDS and type(dtype).__module__.partition(".")[0] == "numpy":
        return CarriedColumn(name, array.to_numpy())
    if str(dtype) not in PANDAS_DTYPES:
        raise CodecError(f"a column of {dtype} cannot be carried")
    return CarriedColumn(name, [None if value is pandas.NA or value != value else value for value in array], str(dtype))


def _put_together(frame: CarriedFrame) -> Any:
    import pandas

    levels = frame.index or [CarriedColumn(None, [0, frame.rows, 1], "range")]
    index: Any
    if len(levels) > 1:
        index = pandas.MultiIndex.from_arrays(map(_array, levels), names=[level.name for level in levels])
    elif levels[0].dtype == "range":
        start, stop, step = levels[0].values
        index = pandas.RangeIndex(start, stop, step, name=levels[0].name)
    else:
        index = pandas.Index(_array(levels[0]), name=levels[0].name)
    match frame.kind:
        case "index":
            return index
        case "series":
            return pandas.Series(_array(frame.columns[0]), index=index, name=frame.columns[0].name)
        case "frame":
            arrays = {number: pandas.Series(_array(column), index=index) for number, column in enumerate(frame.columns)}
            made = pandas.DataFrame(arrays, index=index)
            made.columns = pandas.Index([column.name for column in frame.columns], name=frame.names)
            return made
    raise ValueError("neither frame, series nor index")


def _array(column: CarriedColumn) -> Any:
    import pandas

    if column.dtype == "category":
        return pandas.Categorical.from_codes(column.values, _array(column.categories), ordered=column.is_ordered)
    if not column.dtype:
        return column.values
    if column.dtype not in PANDAS_DTYPES:
        raise ValueError("no such type of column")
    return pandas.array(column.values, dtype=column.dtype)
