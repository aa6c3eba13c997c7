"""A worker as a plain child process, and a synchronous peer to talk to it with."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import blake3
import cloudpickle

from croft.compute import worker
from croft.compute.worker_messages import (
    BufferPart,
    ChunkDone,
    ChunkResults,
    FromWorker,
    FunctionFailed,
    LoadFunction,
    Outcome,
    Ready,
    ResultPart,
    RunChunk,
    Status,
)
from croft.wire.codec import Message, decode, encode
from croft.wire.frames import FrameReader, frame

ANSWER_S_MAX = 30.0
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def arguments(*args: object, **kwargs: object) -> bytes:
    """One task's pickled arguments."""
    return pickle.dumps((args, kwargs), protocol=5)


def load_message(function: Callable[..., object], python: str = PYTHON) -> LoadFunction:
    """The message that carries `function`."""
    # The modules of tests are not to be found where the function runs.
    cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    pickled = cloudpickle.dumps(function)
    return LoadFunction(blake3.blake3(pickled).digest(), pickled, python)


class WorkerProcess:
    """Starts the worker in `folder`; a context manager that ends it."""

    def __init__(self, folder: Path, slots: int = 1) -> None:
        self.socket, inside = socket.socketpair()
        self.socket.settimeout(ANSWER_S_MAX)
        argv = [sys.executable, "-sEP", worker.__file__, str(inside.fileno()), str(slots)]
        self.process = subprocess.Popen(argv, pass_fds=[inside.fileno()], cwd=folder)
        inside.close()
        self._reader = FrameReader(step="test")
        self._received: list[Message] = []
        self._chunks = 0
        assert isinstance(self.receive(), Ready)

    def send(self, message: Message) -> None:
        """Sends one message."""
        self.socket.sendall(frame(encode(message)))

    def receive(self) -> FromWorker:
        """The next message from the worker. Raises EOFError once it has ended."""
        while not self._received:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            for payload in self._reader.feed(data):
                self._received.append(decode(payload, FromWorker, step="test"))  # type: ignore[arg-type]
        return self._received.pop(0)  # type: ignore[return-value]

    def submit(
        self, digest: bytes, tasks: Sequence[bytes], task_s_max: float = 0.0, buffers: Sequence[list[bytes]] = ()
    ) -> int:
        """Sends a chunk; returns its number."""
        self._chunks += 1
        self.send(RunChunk(self._chunks, digest, list(tasks), task_s_max, list(buffers)))
        return self._chunks

    def put(self, data: bytes) -> bytes:
        """Sends a buffer in two parts; returns its digest."""
        digest = blake3.blake3(data).digest()
        half = len(data) // 2
        self.send(BufferPart(digest, len(data), 0, data[:half]))
        self.send(BufferPart(digest, len(data), half, data[half:]))
        return digest

    def load(self, function: Callable[..., object]) -> bytes:
        """Sends a function; returns its digest."""
        message = load_message(function)
        self.send(message)
        return message.digest

    def finish(self, *chunks: int) -> dict[int, dict[int, Outcome]]:
        """Collects the outcomes of these chunks until all are done."""
        open_chunks = set(chunks)
        outcomes: dict[int, dict[int, Outcome]] = {chunk: {} for chunk in chunks}
        parts: dict[tuple[int, int], bytes] = {}
        while open_chunks:
            message = self.receive()
            if isinstance(message, ChunkResults):
                for index, status, payload in message.outcomes:
                    assert index not in outcomes[message.chunk], "an outcome came twice"
                    whole = parts.pop((message.chunk, index), b"") + payload
                    outcomes[message.chunk][index] = (index, status, whole if status == Status.OK else payload)
            elif isinstance(message, ResultPart):
                key = (message.chunk, message.task)
                assert message.offset == len(parts.get(key, b"")), "a part continues what came before it"
                parts[key] = parts.get(key, b"") + message.data
            elif isinstance(message, ChunkDone):
                open_chunks.remove(message.chunk)
            elif isinstance(message, FunctionFailed):
                raise AssertionError(message.reason)
        return outcomes

    def run(
        self, function: Callable[..., object], tasks: Sequence[bytes], task_s_max: float = 0.0
    ) -> list[tuple[int, bytes]]:
        """Runs one chunk; (status, payload) of each task, in order."""
        chunk = self.submit(self.load(function), tasks, task_s_max)
        outcomes = self.finish(chunk)[chunk]
        assert sorted(outcomes) == list(range(len(tasks)))
        return [outcomes[index][1:] for index in range(len(tasks))]

    def close(self) -> int:
        """Closes the socket, waits for the worker to end and returns its exit code."""
        self.socket.close()
        return self.process.wait(ANSWER_S_MAX)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
