"""Runs the tasks of one chunk in a process of their own, and reads back what that process reports.

A runner writes every outcome to a pipe as soon as it exists: the worker gathers them into batches, so a slow task never
delays an earlier result, and what a dying runner had finished is still in the pipe. A page of shared memory says
which task is running and since when. What tasks print goes to a second pipe that the worker drains, marked where a
task ends.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from croft.compute.worker_messages import (
    PART_BYTES,
    RESULT_BYTES_MAX,
    TASK_OUTPUT_BYTES_MAX,
    Outcome,
    RemoteException,
    Status,
)
from croft.compute.worker_processes import become_subreaper, prefer_for_killing, set_dumpable
from croft.errors import CodecError, TooLarge
from croft.wire.codec import encode
from croft.wire.values import encode_in_parts, encode_value

MESSAGE_CHARACTERS_MAX = 4 << 10
TRACEBACK_CHARACTERS_MAX = 16 << 10
ARGUMENTS_BYTES_MAX = 64 << 10
OUTCOME_BYTES_MAX = RESULT_BYTES_MAX + 4096
MARK_TOKEN_BYTES = 16
PART = 0x7F
"""Stands in the place of a status where an outcome is not complete: more of its payload follows."""

CLEAN_FLAG = 0x80
"""Set in the status of a chunk's last outcome by a runner that is as it was before, and waits for another chunk."""
GROWTH_KIB_MAX = 64 << 10
"""A runner whose tasks left more memory behind is not used again."""

_HEADER = struct.Struct("<IBI")
_PROGRESS = struct.Struct("<qd")
_MARK = struct.Struct("<IB")
_MARK_BYTES = MARK_TOKEN_BYTES + _MARK.size


# --- what the worker reads -------------------------------------------------------------------------------------------


class BrokenReport(Exception):
    """A runner wrote what no runner of ours writes: a task tampered with its process."""


class Progress:
    """Which task a runner is running and since when, in memory that both processes see."""

    IDLE = -1

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self.mark(self.IDLE, 0.0)

    def mark(self, index: int, now: float) -> None:
        """Says that task `index` started at `now` (monotonic)."""
        _PROGRESS.pack_into(self._page, 0, index, now)

    def read(self) -> tuple[int, float]:
        """Index of the running task or IDLE, and when it started. A task can have forged both."""
        index, started = _PROGRESS.unpack_from(self._page)
        return index, started

    def close(self) -> None:
        """Unmaps the page."""
        self._page.close()


class OutcomeReader:
    """Cuts a runner's report into outcomes, and a large one into parts."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._large: tuple[int, int, int] | None = None
        """Index and flagged status of the large outcome that comes now, and how many bytes of it are still to come."""
        self.is_clean = False

    def feed(self, received: bytes) -> list[Outcome]:
        """The outcomes that `received` completes, and parts of large ones with status PART. Raises BrokenReport."""
        buffer = self._buffer
        buffer += received
        outcomes: list[Outcome] = []
        position, end = 0, len(buffer)
        unpack, header, view = _HEADER.unpack_from, _HEADER.size, memoryview(buffer)
        while True:
            if self._large is not None:
                position = self._cut(view, position, outcomes)
            if self._large is not None or end - position < header:
                break
            index, flagged, size = unpack(buffer, position)
            status = flagged & ~CLEAN_FLAG
            if size > OUTCOME_BYTES_MAX or status > Status.TOO_LARGE:
                raise BrokenReport(f"an outcome of {size} bytes with status {status}")
            start = position + header
            if size > PART_BYTES:
                position, self._large = start, (index, flagged, size)
                continue
            if end - start < size:
                break
            position = start + size
            outcomes.append((index, status, bytes(view[start:position])))
            self.is_clean = bool(flagged & CLEAN_FLAG)
        view.release()
        del buffer[:position]
        return outcomes

    def _cut(self, view: memoryview, position: int, outcomes: list[Outcome]) -> int:
        """Takes from the large outcome what has come of it, in whole parts; returns where it left off."""
        assert self._large is not None, "only then is there something to cut"
        index, flagged, rest = self._large
        while rest > PART_BYTES and len(view) - position >= PART_BYTES:
            outcomes.append((index, PART, bytes(view[position : position + PART_BYTES])))
            position += PART_BYTES
            rest -= PART_BYTES
        self._large = (index, flagged, rest)
        if rest <= PART_BYTES and len(view) - position >= rest:
            outcomes.append((index, flagged & ~CLEAN_FLAG, bytes(view[position : position + rest])))
            position += rest
            self.is_clean = bool(flagged & CLEAN_FLAG)
            self._large = None
        return position


class OutputTail:
    """Keeps the end of what each failed task printed, and the end of what the running task has printed so far."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._text = bytearray()
        self._kept: dict[int, bytes] = {}

    def feed(self, printed: bytes) -> None:
        """Takes the next part of the output pipe."""
        text = self._text
        text += printed
        while (at := text.find(self._token)) >= 0 and len(text) - at >= _MARK_BYTES:
            index, is_kept = _MARK.unpack_from(text, at + MARK_TOKEN_BYTES)
            if is_kept:
                self._kept[index] = bytes(text[max(0, at - TASK_OUTPUT_BYTES_MAX) : at])
            del text[: at + _MARK_BYTES]
        del text[: max(0, len(text) - TASK_OUTPUT_BYTES_MAX - _MARK_BYTES)]

    def of_failed(self, index: int) -> str:
        """The end of what task `index` printed."""
        return self._kept.pop(index, b"").decode(errors="replace")

    def of_running(self) -> str:
        """The end of what was printed since the last mark."""
        return bytes(self._text[-TASK_OUTPUT_BYTES_MAX:]).decode(errors="replace")


# --- what happens in the runner --------------------------------------------------------------------------------------


class _Printed(io.FileIO):
    """A standard stream of a runner that knows whether the running task used it."""

    is_dirty = False

    def write(self, text: object) -> int:
        _Printed.is_dirty = True
        return super().write(text)  # type: ignore[arg-type]  # FileIO checks it


class Runner:
    """The runner's end of the pipes."""

    def __init__(self, results: int, output: int, progress: Progress, token: bytes) -> None:
        self._results = results
        self._output = output
        self._progress = progress
        self._token = token
        self._size_kib = 0

    def prepare(self, keep: Iterable[int]) -> None:
        """Makes the fresh fork a process of its own: group, streams, no descriptors but `keep`."""
        # A group of its own, but the worker's session: a new one would count as one more user of the machine, see
        # `yield_to_owner`.
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        become_subreaper()
        set_dumpable(True)
        prefer_for_killing()
        os.dup2(self._output, 1)
        os.dup2(self._output, 2)
        lowest = 3
        for descriptor in sorted({self._results, *keep}):
            os.closerange(lowest, descriptor)
            lowest = descriptor + 1
        os.closerange(lowest, os.sysconf("SC_OPEN_MAX"))
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Printed(1, "w", closefd=False)), errors="replace")
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Printed(2, "w", closefd=False)), errors="replace")
        sys.stderr.reconfigure(line_buffering=True)
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]  # new process, new streams

    def run(
        self,
        function: Callable[..., object],
        indices: Sequence[int],
        arguments: Sequence[bytes],
        buffers: Sequence[Sequence[mmap.mmap]] = (),
    ) -> bool:
        """Runs tasks in order and reports each. Whether another chunk may follow: the tasks left nothing behind."""
        mark, now = self._progress.mark, time.monotonic
        last = indices[-1]
        self._size_kib = self._size_kib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Memory that came with this runner goes with it.
        is_clean = not buffers
        for index in indices:
            mark(index, now())
            status, payload = run_task(function, arguments[index], buffers[index] if buffers else ())
            self._end_output(index, is_kept=status in (Status.RAISED, Status.DIED))
            is_clean = is_clean and status == Status.OK
            if index == last:
                mark(Progress.IDLE, 0.0)
                is_clean = is_clean and self._left_nothing()
                self._report(index, status | CLEAN_FLAG if is_clean else status, payload)
            else:
                self._report(index, status, payload)
        return is_clean

    def _left_nothing(self) -> bool:
        """No thread, no process, no great growth: what a chunk's tasks may not hand on to the next."""
        if threading.active_count() > 1 or threading.main_thread().ident != threading.get_ident():
            return False
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._size_kib
        if grown_kib > GROWTH_KIB_MAX:
            return False
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        return False

    def _report(self, index: int, status: int, payload: Sequence[bytes | memoryview]) -> None:
        head = _HEADER.pack(index, status, sum(map(len, payload)))
        for part in (head + payload[0], *payload[1:]):
            report = memoryview(part)
            while report:
                report = report[os.write(self._results, report) :]

    def _end_output(self, index: int, *, is_kept: bool) -> None:
        with contextlib.suppress(Exception):  # a task may have closed or replaced its streams
            sys.stdout.flush()
            sys.stderr.flush()
        if _Printed.is_dirty or is_kept:
            _Printed.is_dirty = False
            with contextlib.suppress(OSError):
                os.write(1, self._token + _MARK.pack(index, is_kept))


def run_task(
    function: Callable[..., object], pickled: bytes, buffers: Sequence[mmap.mmap] = ()
) -> tuple[Status, Sequence[bytes | memoryview]]:
    """Calls `function` with the pickled (args, kwargs) and says how it went, the payload in parts. Never raises."""
    status, payload = _outcome(function, pickled, buffers)
    return status, [payload] if isinstance(payload, bytes) else payload


def _outcome(
    function: Callable[..., object], pickled: bytes, buffers: Sequence[mmap.mmap]
) -> tuple[Status, bytes | Sequence[bytes | memoryview]]:
    try:
        args, kwargs = pickle.loads(pickled, buffers=buffers)
        result = function(*args, **kwargs)
    except SystemExit as error:
        return Status.DIED, f"the task called sys.exit({error.code!r:.100})".encode()
    except BaseException as error:
        return Status.RAISED, encode(describe_exception(error))
    try:
        encoded = encode_in_parts(result, size_bytes_max=RESULT_BYTES_MAX)
    except TooLarge as error:
        return Status.TOO_LARGE, error.message.encode()
    except CodecError as error:
        return Status.UNCARRIED, error.message.encode(errors="replace")[:MESSAGE_CHARACTERS_MAX]
    except BaseException as error:
        text = f"a result of type {type(result).__qualname__} cannot be encoded: {_text_of(error)}"
        return Status.UNCARRIED, text.encode(errors="replace")[:MESSAGE_CHARACTERS_MAX]
    return Status.OK, encoded


def describe_exception(error: BaseException) -> RemoteException:
    """What travels of an exception: names, text, traceback without our own frames, and arguments if they can."""
    kind = type(error)
    try:
        arguments = encode_value(error.args)
        if len(arguments) > ARGUMENTS_BYTES_MAX:
            arguments = b""
    except BaseException:
        arguments = b""
    try:
        trace = _without_own_frames(error.__traceback__)
        text = "".join(traceback.format_exception(kind, error, trace))
    except BaseException:
        text = f"{kind.__qualname__}: (its traceback cannot be printed)\n"
    return RemoteException(
        module=str(kind.__module__),
        name=kind.__qualname__,
        message=_text_of(error),
        traceback=_sendable(text[-TRACEBACK_CHARACTERS_MAX:]),
        arguments=arguments,
    )


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _text_of(error: BaseException) -> str:
    try:
        return _sendable(str(error)[:MESSAGE_CHARACTERS_MAX])
    except BaseException:
        return "(its message cannot be printed)"


def _sendable(text: str) -> str:
    return text.encode(errors="replace").decode()
