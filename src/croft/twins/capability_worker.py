"""The process that runs a capability: loads one function of the owner's, and serves calls of it one after the other.

It runs with the owner's rights, for it is the owner's own code; what comes from callers is decoded by the safe codec
alone, and checked against the function's annotations before it runs. Started as `python -m
croft.twins.capability_worker SOURCE`, a `Source` as JSON, with its socket as the descriptor after; with `--describe` in
front it prints the function's signature instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from croft.errors import CodecError, CroftError, PeerMisbehaved, TooLarge, Usage
from croft.twins.call_messages import (
    ITEMS_AHEAD,
    RESULT_BYTES_MAX,
    VALUE_PART_BYTES_MAX,
    ArgumentPart,
    AskCall,
    CallEnded,
    CallFailed,
    CallRaised,
    InputEnd,
    InputItem,
    InputWanted,
    MoreWanted,
    NamedArgument,
    StopCall,
    ToProvider,
    ValuePart,
    WorkerReady,
)
from croft.twins.capability_kinds import function_of
from croft.twins.capability_signature import BadField, Typed, lowered, no_file
from croft.twins.capability_source import Source
from croft.wire import frames
from croft.wire.codec import Message, decode_union, encode
from croft.wire.values import decode_value, encode_in_parts

STEP = "capability worker"
TRACEBACK_CHARS_MAX = 20_000
MESSAGE_CHARS_MAX = 2_000
DIE_WITH_PARENT = 1


class Stopped(BaseException):
    """The call is not wanted any more; not an `Exception`, so that functions do not swallow it."""


class Uncarried(Exception):
    """What the function returned cannot travel."""


class Wire:
    """Frames over a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = frames.FrameReader(frames.FRAME_BYTES_MAX, step=STEP)
        self._received: list[bytes] = []

    def receive(self) -> ToProvider:
        """The next message. Ends the process once the daemon is gone."""
        while not self._received:
            data = self._socket.recv(1 << 20)
            if not data:
                os._exit(0)
            self._received = self._reader.feed(data)[::-1]
        message: ToProvider = decode_union(self._received.pop(), ToProvider, step=STEP)
        return message

    def send(self, *messages: Message) -> None:
        """Sends messages in one piece."""
        self._socket.sendall(frames.join(map(encode, messages)))


class Worker:
    """Serves the calls of one function."""

    def __init__(self, typed: Typed, wire: Wire) -> None:
        self._typed = typed
        self._wire = wire
        self._loop = asyncio.new_event_loop() if _is_async(typed.function) else None
        self._begin(0)

    def serve(self) -> None:
        """Until the daemon hangs up."""
        self._wire.send(WorkerReady(0, platform.python_version()))
        while True:
            asked = self._wire.receive()
            if isinstance(asked, AskCall):
                self._begin(asked.call)
                with Files() as files:
                    self._wire.send(*self._served(asked, files))
            # What else comes here is of a call that is over.

    def _begin(self, call: int) -> None:
        self._call = call
        self._inputs: deque[bytes] = deque()
        self._parts: list[bytes] = []
        self._fetching: dict[str, list[bytes]] = {}
        self._fetched: dict[str, bytes] = {}
        self._is_input_over = False
        self._ahead = 0

    def _served(self, asked: AskCall, files: Files) -> Iterable[Message]:
        """Serves one call; what is left to say of it at its end."""
        try:
            bound = self._bound(asked, files)
        except Stopped:
            return [CallEnded(self._call)]
        except (CodecError, BadField, TypeError) as error:
            field = error.field if isinstance(error, BadField) else ""
            return [CallFailed(self._call, "bad_argument", str(error), field=field)]
        try:
            return self._answer(bound)
        except Stopped:
            return [CallEnded(self._call)]
        except Uncarried as error:
            return [CallFailed(self._call, "capability_failed", str(error), has_begun=True)]
        except Exception as error:
            return [_account(self._call, error)]

    def _bound(self, asked: AskCall, files: Files) -> dict[str, Any]:
        if not asked.is_whole:
            self._parts = [asked.arguments]
            while not self._inputs:
                self._take_message()
        arguments = decode_value(bytearray(asked.arguments if asked.is_whole else self._inputs.popleft()))
        if not isinstance(arguments, dict):
            raise BadField("", "arguments come by name")
        while len(self._fetched) < len(asked.refs):
            self._take_message()
        arguments.update({name: decode_value(bytearray(data)) for name, data in self._fetched.items()})
        bound = self._typed.bind(arguments, files.put)
        if self._typed.stream_in:
            bound[self._typed.stream_in] = self._input()
        return bound

    def _answer(self, bound: dict[str, Any]) -> Iterable[Message]:
        result = self._typed.function(**bound)
        if self._loop is not None and inspect.isawaitable(result):
            result = self._loop.run_until_complete(_awaited(result))
        if not self._typed.streams:
            return value_parts(self._call, _encoded(result), is_item=False)
        items = self._items(result)
        try:
            for item in items:
                self._wire.send(*value_parts(self._call, _encoded(item), is_item=True))
                self._ahead += 1
                while self._ahead >= ITEMS_AHEAD:
                    self._take_message()
        finally:
            items.close()
        return [CallEnded(self._call)]

    def _items(self, result: Any) -> Generator[Any]:
        if not isinstance(result, AsyncIterator):
            yield from result
            return
        assert self._loop is not None, "an asynchronous function has its loop"
        while True:
            try:
                yield self._loop.run_until_complete(_awaited(anext(result)))
            except StopAsyncIteration:
                return

    def _input(self) -> Iterator[Any]:
        """The items of the stream into the call, as they come."""
        typed, name = self._typed, self._typed.stream_in
        while True:
            while not self._inputs and not self._is_input_over:
                self._take_message()
            if not self._inputs:
                return
            item = typed.converted(name, typed.types[name], decode_value(bytearray(self._inputs.popleft())), no_file)
            self._wire.send(InputWanted(self._call, 1))
            yield item

    def _take_message(self) -> None:
        """Waits for one message about this call, and does what it says. Raises Stopped."""
        message = self._wire.receive()
        if message.call != self._call:
            return
        match message:
            case StopCall():
                raise Stopped
            case MoreWanted(_, items):
                self._ahead -= items
            case InputEnd():
                self._is_input_over = True
            case InputItem(_, data, is_whole):
                self._take_part(data, is_whole)
            case ArgumentPart(_, data, is_last):
                self._take_part(data, is_last)
            case NamedArgument(_, parameter, data, is_last):
                self._fetching.setdefault(parameter, []).append(data)
                if is_last:
                    self._fetched[parameter] = b"".join(self._fetching.pop(parameter))

    def _take_part(self, data: bytes, is_last: bool) -> None:
        self._parts.append(data)
        if is_last:
            self._inputs.append(b"".join(self._parts))
            self._parts = []


class Files:
    """The files that come with one call; they go with it."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, name: str, content: bytes | memoryview) -> Path:
        """Writes one, under its own name."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="croft-call-"))
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        path = folder / (Path(name).name or "file")
        path.write_bytes(content)
        return path


def _encoded(value: Any) -> bytes:
    try:
        return b"".join(encode_in_parts(lowered(value), size_bytes_max=RESULT_BYTES_MAX))
    except (CodecError, TooLarge) as error:
        raise Uncarried(error.message) from None


def value_parts(call: int, data: bytes, *, is_item: bool) -> Iterator[ValuePart]:
    """A value as messages."""
    for at in range(0, max(1, len(data)), VALUE_PART_BYTES_MAX):
        part = data[at : at + VALUE_PART_BYTES_MAX]
        yield ValuePart(call, part, at + VALUE_PART_BYTES_MAX >= len(data), is_item)


def load(file: str, name: str) -> Callable[..., Any]:
    """The function `name` of a Python file. Raises Usage."""
    path = Path(file)
    sys.path[0] = str(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Usage(f"{file} is no Python file", remedy="Write it like `ocr.py:read_page`.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise Usage(f"there is no file {file}", remedy="Write it like `ocr.py:read_page`.") from None
    except Exception as error:
        raise Usage(f"{file} cannot be imported: {type(error).__name__}: {error}", remedy="Correct it.") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise Usage(f"{file} has no function `{name}`", remedy="Write it like `ocr.py:read_page`.")
    return function  # type: ignore[no-any-return]


def function_at(source: Source) -> Callable[..., Any]:
    """What a source names, as a function. Raises Usage."""
    return load(source.file, source.function) if source.file else function_of(source)


def describe(source: Source) -> dict[str, Any]:
    """What a function says of itself: its signature and its text."""
    function = function_at(source)
    return {"signature": Typed(function).signature.decode(), "text": inspect.getdoc(function) or ""}


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


async def _awaited(result: Any) -> Any:
    return await result


def _account(call: int, error: Exception) -> CallRaised:
    text = "".join(traceback.format_exception(error))[-TRACEBACK_CHARS_MAX:]
    return CallRaised(call, type(error).__qualname__, str(error)[:MESSAGE_CHARS_MAX], text)


def _die_with_the_daemon() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    """The process."""
    source = msgspec.json.decode(sys.argv[2 if sys.argv[1] == "--describe" else 1], type=Source)
    if sys.argv[1] == "--describe":
        shown = os.dup(1)
        os.dup2(2, 1)  # what the file prints when it is imported is talk
        try:
            answer: dict[str, Any] = describe(source)
        except CroftError as error:
            answer = {"error": error.message, "remedy": error.remedy}
        os.write(shown, msgspec.json.encode(answer))
        return
    _die_with_the_daemon()
    wire = Wire(socket.socket(fileno=int(sys.argv[2])))
    try:
        typed = Typed(function_at(source))
    except CroftError as error:
        wire.send(CallFailed(0, error.code, error.message, error.remedy))
        return
    with contextlib.suppress(PeerMisbehaved, BrokenPipeError, ConnectionResetError):
        Worker(typed, wire).serve()


if __name__ == "__main__":
    main()
