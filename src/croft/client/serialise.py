"""Turns functions and arguments into bytes for the peers, and outcomes back into values and exceptions.

Arguments travel as pickles and are loaded only inside a box. Results come back in the safe codec: nothing that a
lender sends is ever unpickled here.
"""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
from blake3 import blake3

from croft.client.dependencies import (
    DependencyFailed,
    Refer,
    Reference,
    Unfinished,
    is_future,
    reduced,
    reduced_file,
)
from croft.client.local_modules import is_local, take_along_local_modules
from croft.client.stored_argument import StoredArgument
from croft.client.task_future import TaskFuture
from croft.compute.worker_messages import (
    ARGUMENT_BYTES_MAX,
    BUFFER_BYTES_MAX,
    BUFFER_BYTES_MIN,
    BUFFERS_MAX,
    FUNCTION_BYTES_MAX,
    RemoteException,
    Status,
)
from croft.errors import (
    CodecError,
    PeerMisbehaved,
    TaskDied,
    TaskDisputed,
    TaskFailed,
    TaskTimedOut,
    TooLarge,
    Unserialisable,
)
from croft.wire.codec import decode
from croft.wire.values import decode_value

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class RemoteTraceback(Exception):
    """Stands as the cause of an exception from a task; its text is the traceback on the peer."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def function_bytes(function: object) -> tuple[bytes, bytes]:
    """Digest and pickle of a function. Raises Unserialisable, TooLarge."""
    if not callable(function):
        raise Unserialisable(f"{function!r} is not callable", remedy="Pass a function.")
    name = getattr(function, "__qualname__", repr(function))
    take_along_local_modules()
    try:
        pickled = cloudpickle.dumps(function, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Unserialisable(
            f"the function {name} cannot be sent: {error}",
            remedy="It holds something that exists only here (an open file, a lock, a connection): make it inside.",
        ) from None
    if len(pickled) > FUNCTION_BYTES_MAX:
        raise TooLarge(
            f"the function {name} is {len(pickled):,} bytes with what it refers to, limit is {FUNCTION_BYTES_MAX:,}",
            remedy="Pass large values as arguments, or read them inside.",
        )
    return blake3(pickled).digest(), pickled


def never(_: TaskFuture) -> bool:
    """Has every future that is an argument pickled as its value."""
    return False


def argument_bytes(
    arguments: tuple[Any, ...], named: dict[str, Any], *, is_apart: bool = True, refer: Refer = never
) -> tuple[bytes, list[memoryview | TaskFuture | StoredArgument]]:
    """The pickle of one call's arguments, and the buffers that it refers to (PEP 574), which still are the caller's.

    Unless `is_apart`, all is in the pickle. Futures among the arguments are pickled as their values, or as references,
    where `refer` allows that; then they stand among the buffers. Raises Unserialisable, TooLarge; Unfinished or
    DependencyFailed for a future that has no value.
    """
    call = (arguments, named)
    buffers: list[memoryview | TaskFuture | StoredArgument] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if isinstance(view.obj, Reference):
            if not is_apart:
                raise TypeError("a stored file goes to tasks of a job that is not detached")
            buffers.append(view.obj.to)
            return False
        if not is_apart or view.nbytes < BUFFER_BYTES_MIN or len(buffers) >= BUFFERS_MAX:
            return True
        buffers.append(view)
        return False

    try:
        pickled = _fast_pickle(call, is_small, refer)
    except (Unfinished, DependencyFailed):
        raise
    except Exception:
        buffers.clear()
        try:
            take_along_local_modules()
            pickled = _thorough_pickle(call, is_small, refer)
        except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise Unserialisable(
                f"an argument cannot be sent: {error}", remedy="Pass plain data, and open files or connections inside."
            ) from None
    if len(pickled) > ARGUMENT_BYTES_MAX:
        raise TooLarge(
            f"the arguments are {len(pickled):,} bytes beside their arrays, limit is {ARGUMENT_BYTES_MAX:,}",
            remedy="Split them into several tasks, or pass arrays.",
        )
    if any(isinstance(buffer, memoryview) and buffer.nbytes > BUFFER_BYTES_MAX for buffer in buffers):
        raise TooLarge(f"an array takes more than {BUFFER_BYTES_MAX:,} bytes", remedy="Pass it in parts.")
    return pickled, buffers


def code_bytes(value: object, buffers: list[memoryview]) -> bytes:
    """The pickle of anything that refers to functions, which it takes along as `function_bytes` does.

    Buffers beside it (PEP 574) are added to `buffers`. Raises what pickling raises.
    """

    def take(buffer: pickle.PickleBuffer) -> None:
        buffers.append(buffer.raw())

    written = io.BytesIO()
    try:
        _ByNameOnly(written, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=take).dump(value)
    except Exception:
        buffers.clear()
        written = io.BytesIO()
        take_along_local_modules()
        _ByValue(written, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=take).dump(value)
    return written.getvalue()


class _ByNameOnly(pickle.Pickler):
    """Refuses what no peer can find by its name, in `__main__` or a local module: cloudpickle carries that by value."""

    refer: Refer = staticmethod(never)

    def reducer_override(self, value: object) -> Any:
        if is_future(value):
            return reduced(value, self.refer)
        if isinstance(value, StoredArgument):
            return reduced_file(value)
        if isinstance(value, type | _FUNCTION):
            name = getattr(value, "__module__", None)
            module = sys.modules.get(name) if isinstance(name, str) else None
            if module is None or name == "__main__" or is_local(name or "", module):
                raise pickle.PicklingError
        return NotImplemented


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Takes along what no peer can find by its name."""

    refer: Refer = staticmethod(never)

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, StoredArgument):
            return reduced_file(value)
        return reduced(value, self.refer) if is_future(value) else super().reducer_override(value)


_FUNCTION = type(lambda: None)
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})


def _fast_pickle(
    call: tuple[tuple[Any, ...], dict[str, Any]], is_small: Callable[[pickle.PickleBuffer], bool], refer: Refer
) -> bytes:
    arguments, named = call
    if not named and all(type(argument) in _PLAIN for argument in arguments):
        return pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
    buffer = io.BytesIO()
    pickler = _ByNameOnly(buffer, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=is_small)
    pickler.refer = refer
    pickler.dump(call)
    return buffer.getvalue()


def _thorough_pickle(
    call: tuple[tuple[Any, ...], dict[str, Any]], is_small: Callable[[pickle.PickleBuffer], bool], refer: Refer
) -> bytes:
    buffer = io.BytesIO()
    pickler = _ByValue(buffer, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=is_small)
    pickler.refer = refer
    pickler.dump(call)
    return buffer.getvalue()


def outcome_value(status: int, payload: bytes | bytearray, peer_name: str) -> Any:
    """The value of a task. Raises what it raised, TaskDied, TaskTimedOut, CodecError or TooLarge.

    The value may stand on `payload`: it is not to be used again.
    """
    if status == Status.OK:
        return decode_value(payload)
    raise _exception(status, bytes(payload), peer_name)


def _exception(status: int, payload: bytes, peer_name: str) -> BaseException:
    where = f"on {peer_name}" if peer_name else "on every peer that tried"
    if status == Status.RAISED:
        return exception_of(payload, where)
    text = payload.decode(errors="replace")
    if status == Status.TIMED_OUT:
        return TaskTimedOut(f"the task {where} {text}", remedy="Give it more time, or split it.")
    if status == Status.UNCARRIED:
        return CodecError(f"the result of a task {where} cannot be carried: {text}", remedy="Return plain data.")
    if status == Status.DISPUTED:
        return TaskDisputed(
            f"nobody knows what came of the task: {text}",
            remedy="Verify only functions that give the same result everywhere.",
        )
    if status == Status.TOO_LARGE:
        return TooLarge(f"a task {where} is too large: {text}", remedy="Give it more `memory`, or do it in parts.")
    return TaskDied(f"the task {where} died: {text}")


def exception_of(payload: bytes, where: str) -> BaseException:
    """What an encoded `RemoteException` says was raised, with the remote traceback as its cause."""
    try:
        remote = decode(payload, RemoteException, step="task results")
    except PeerMisbehaved as fault:
        return TaskDied(f"the task {where} failed, and how cannot be read: {fault}")
    error = _rebuild(remote)
    if error is None:
        error = TaskFailed(
            f"a task {where} raised {remote.name}: {remote.message}",
            type_name=f"{remote.module}.{remote.name}",
            remote_traceback=remote.traceback,
        )
    text = f"{where}:\n{remote.traceback}"
    if remote.output:
        text += f"\nIt had printed:\n{remote.output}\n"
    error.__cause__ = RemoteTraceback(text)
    return error


def _rebuild(remote: RemoteException) -> BaseException | None:
    """The same exception, if its class is known here; no code of a class that is not built in runs for it."""
    kind: Any = builtins if remote.module == "builtins" else sys.modules.get(remote.module)
    for part in remote.name.split("."):
        kind = getattr(kind, part, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    arguments = _arguments(remote)
    try:
        if kind.__module__ == "builtins":
            return kind(*arguments)
        return BaseException.__new__(kind, *arguments)
    except TypeError:
        return None


def _arguments(remote: RemoteException) -> tuple[Any, ...]:
    if remote.arguments:
        try:
            arguments = decode_value(remote.arguments)
        except CodecError:
            arguments = None
        if isinstance(arguments, tuple):
            return arguments
    return (remote.message,)
