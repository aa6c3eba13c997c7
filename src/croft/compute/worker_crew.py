"""Runs chunks in forked runners, several at a time, and accounts for every task of every chunk exactly once.

A runner whose tasks left nothing behind takes another chunk of the same function, for a bounded time; so a lone task
pays for no fork. When a runner dies, the task that it was running is to blame; tasks that it had finished keep their
outcome, the rest go on in a new runner.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import mmap
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from croft.compute.worker_buffers import Buffers
from croft.compute.worker_loop import READ_BYTES, Loop, PeerLink
from croft.compute.worker_messages import (
    ChunkDone,
    ChunkResults,
    FunctionFailed,
    LoadFunction,
    Outcome,
    RemoteException,
    ResultPart,
    RunChunk,
    Status,
)
from croft.compute.worker_processes import Children, describe_exit
from croft.compute.worker_runner import (
    MARK_TOKEN_BYTES,
    PART,
    BrokenReport,
    OutcomeReader,
    OutputTail,
    Progress,
    Runner,
    run_task,
)
from croft.wire.codec import decode, encode
from croft.wire.frames import HEADER_BYTES, frame

BATCH_S = 0.003
"""A runner's report is read this often, unless there is much of it: batching is what makes small tasks cheap."""
BUSY_READ_BYTES = 32 << 10
"""After a read of at least this size the next one does not wait."""
BATCH_BYTES_MAX = 4 << 20
RESULTS_PIPE_BYTES = 256 << 10
REQUEST_BYTES_MAX = 60 << 10
"""A chunk up to this size fits an empty pipe, so it can be handed to a waiting runner without blocking."""
SPARES_MAX = 4
QUIET_S = 0.002
RUNNER_CHUNKS_MAX = 256
RUNNER_S_MAX = 10.0
"""A runner is not used again after so many chunks, or so long after it was forked."""
BARREN_RUNNERS_MAX = 3
"""Runners of a chunk that may die without running any task before its tasks are given up."""
FORK_RETRY_S = 0.02
FORK_RETRIES_MAX = 100
NOBODY = -1

Function = Callable[..., object]
Verdict = tuple[int, Status, str]
"""Task to blame (or NOBODY), and with what."""


@dataclass(slots=True, eq=False)
class Chunk:
    """A chunk that is not done: which of its tasks have no outcome yet, in order."""

    request: RunChunk
    unfinished: dict[int, None] = field(default_factory=dict)
    elapsed_s: float = 0.0
    barren_runners: int = 0
    fork_refusals: int = 0


@dataclass(slots=True, eq=False)
class RunnerProcess:
    """The worker's end of a runner. `chunk` is None while it waits as a spare."""

    function: bytes
    pid: int
    exit_descriptor: int
    results: int
    output: int
    request: int
    progress: Progress
    tail: OutputTail
    reader: OutcomeReader = field(default_factory=OutcomeReader)
    chunk: Chunk | None = None
    started: float = 0.0
    forked: float = field(default_factory=time.monotonic)
    chunks: int = 0
    part_offset: int = 0
    """Where in the outcome that comes now its next part stands."""
    verdict: Verdict | None = None


def fork_runner(
    digest: bytes, function: Function, chunk: Chunk | None, buffers: Sequence[Sequence[mmap.mmap]] = ()
) -> RunnerProcess:
    """Forks a runner: at work on `chunk` at once, or as a spare that waits for one. Raises OSError.

    `buffers` are those of each task of the chunk, or nothing if none has any.
    """
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe()
        results, results_end, output, output_end, request_end, request_to = opened
        progress, token = Progress(), os.urandom(MARK_TOKEN_BYTES)
        with contextlib.suppress(OSError):  # a smaller pipe is only slower
            fcntl.fcntl(results, fcntl.F_SETPIPE_SZ, RESULTS_PIPE_BYTES)
        pid = os.fork()
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    if pid == 0:
        try:
            runner = Runner(results_end, output_end, progress, token)
            runner.prepare(keep=(request_end,))
            if chunk is None:
                _warm_up()
                request = _await_request(request_end)
                is_clean = runner.run(function, range(len(request.arguments)), request.arguments)
            else:
                is_clean = runner.run(function, list(chunk.unfinished), chunk.request.arguments, buffers)
            while is_clean:
                request = _await_request(request_end)
                is_clean = runner.run(function, range(len(request.arguments)), request.arguments)
            os._exit(0)
        finally:
            os._exit(70)
    for descriptor in (results_end, output_end, request_end):
        os.close(descriptor)
    for descriptor in (results, output, request_to):
        os.set_blocking(descriptor, False)
    return RunnerProcess(
        digest, pid, os.pidfd_open(pid), results, output, request_to, progress, OutputTail(token), chunk=chunk
    )


def _warm_up() -> None:
    """Touches the memory that a task will need: the first write to each page that a fork shares copies it."""
    request = RunChunk(0, b"", [pickle.dumps((("",), {}))])
    repeated = decode(encode(request), RunChunk, step="runner")
    run_task(repr, repeated.arguments[0])


def _await_request(descriptor: int) -> RunChunk:
    received = b""
    size = HEADER_BYTES
    while len(received) < size:
        part = os.read(descriptor, READ_BYTES)
        if not part:
            os._exit(0)
        received += part
        size = HEADER_BYTES + int.from_bytes(received[:HEADER_BYTES], "big")
    return decode(received[HEADER_BYTES:], RunChunk, step="runner")


class Crew:
    """Functions by digest, chunks that wait, runners at work and runners in reserve."""

    def __init__(self, loop: Loop, link: PeerLink, children: Children, buffers: Buffers, slots: int) -> None:
        self._loop = loop
        self._link = link
        self._children = children
        self._buffers = buffers
        self._slots = slots
        self._functions: dict[bytes, Function | str] = {}
        self._waiting: deque[Chunk] = deque()
        self._busy: list[RunnerProcess] = []
        self._spares: list[RunnerProcess] = []
        self._spare_wanted: bytes | None = None
        link.on_relief.append(self._resume)

    # --- what the peer asks ---

    def load(self, message: LoadFunction) -> None:
        """Unpickles a function once, so that its imports are shared by all runners."""
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        if message.python != own:
            reason = f"the function was pickled by Python {message.python}, this worker runs Python {own}"
            self._functions[message.digest] = reason
        else:
            try:
                self._functions[message.digest] = pickle.loads(message.pickled)
            except BaseException as error:
                reason = f"the function cannot be loaded: {type(error).__name__}: {error}"[:4096]
                self._functions[message.digest] = reason.encode(errors="replace").decode()
            # What is loaded stays: runners need not copy its pages to collect garbage.
            gc.freeze()
        failure = self._functions[message.digest]
        if isinstance(failure, str):
            self._link.send(FunctionFailed(message.digest, failure))
        else:
            self._spare_wanted = message.digest

    def submit(self, message: RunChunk) -> None:
        """Runs a chunk now or once a slot is free."""
        function = self._functions.get(message.function, "the function was never sent to this worker")
        if isinstance(function, str):
            self._link.send(FunctionFailed(message.function, function))
            self._link.send(ChunkDone(message.chunk, 0.0))
            return
        chunk = Chunk(message, dict.fromkeys(range(len(message.arguments))))
        for index, digests in enumerate(message.buffers):
            found = self._buffers.find(digests)
            if isinstance(found, str):
                del chunk.unfinished[index]
                self._link.send(ChunkResults(message.chunk, [(index, Status.DIED, found.encode())]))
        self._waiting.append(chunk)
        self._start_waiting()

    def cancel(self, number: int) -> None:
        """Ends a chunk at once, whether it waits or runs. A chunk that is already done needs no answer."""
        for chunk in self._waiting:
            if chunk.request.chunk == number:
                self._waiting.remove(chunk)
                self._done(chunk)
                return
        for runner in self._busy:
            if runner.chunk is not None and runner.chunk.request.chunk == number:
                runner.chunk.unfinished.clear()
                self._finish(runner, runner.chunk)
                return

    def end(self) -> None:
        """Kills every runner and all that they started."""
        for runner in (*self._busy, *self._spares):
            self._children.kill(runner.pid)
        self._children.sweep()

    # --- runners in reserve ---

    def spare_after_s(self) -> float | None:
        """After how long a quiet moment a runner should be forked ahead of need; None if none is wanted."""
        if self._spare_wanted is None:
            return None
        # A fork holds up the worker: with nothing waiting, a short chunk gets its results out first.
        return QUIET_S if self._busy and not self._waiting else 0.0

    def fork_spare(self) -> None:
        """Forks the runner that was wanted; without memory or processes to spare, does not."""
        digest, self._spare_wanted = self._spare_wanted, None
        function = self._functions.get(digest) if digest is not None else None
        if digest is None or function is None or isinstance(function, str) or not self._lacks_spare(digest):
            return
        with contextlib.suppress(OSError):
            spare = fork_runner(digest, function, None)
            self._children.add(spare.pid)
            self._keep_spare(spare)

    def _lacks_spare(self, digest: bytes) -> bool:
        """Whether a slot could take a chunk of this function for which no runner waits."""
        return len(self._busy) + sum(spare.function == digest for spare in self._spares) < self._slots

    def _keep_spare(self, spare: RunnerProcess) -> None:
        while len(self._spares) >= max(SPARES_MAX, self._slots):
            self._spare_died(self._spares[0])
        self._spares.append(spare)
        self._loop.watch(spare.exit_descriptor, lambda: self._spare_died(spare))

    def _spare_died(self, spare: RunnerProcess) -> None:
        if spare not in self._spares:
            return
        self._spares.remove(spare)
        self._retire(spare)

    def _take_spare(self, chunk: Chunk) -> RunnerProcess | None:
        request = chunk.request
        if request.buffers or len(chunk.unfinished) < len(request.arguments):
            return None
        framed = frame(encode(request))
        if len(framed) > REQUEST_BYTES_MAX:
            return None
        # The one that waited least has most of its pages in the caches.
        for spare in [spare for spare in reversed(self._spares) if spare.function == request.function]:
            self._spares.remove(spare)
            with contextlib.suppress(OSError):
                if os.write(spare.request, framed) == len(framed):
                    spare.chunk = chunk
                    self._loop.forget(spare.exit_descriptor)
                    return spare
            self._retire(spare)
        return None

    # --- runners at work ---

    def _start_waiting(self) -> None:
        while self._waiting and len(self._busy) < self._slots:
            chunk = self._waiting.popleft()
            if not chunk.unfinished:
                self._done(chunk)
            elif not self._start(chunk):
                return

    def _start(self, chunk: Chunk) -> bool:
        """Puts a runner to work on what is unfinished. False if none could be forked; it is tried again later."""
        digest = chunk.request.function
        function = self._functions[digest]
        assert not isinstance(function, str), "submit refused it"
        runner = self._take_spare(chunk)
        if runner is None:
            try:
                runner = fork_runner(digest, function, chunk, self._buffers_of(chunk))
            except OSError as error:
                self._fork_refused(chunk, error)
                return False
            self._children.add(runner.pid)
        runner.started = time.monotonic()
        runner.chunks += 1
        self._busy.append(runner)
        if self._spare_wanted is None and self._lacks_spare(digest):
            self._spare_wanted = digest
        self._loop.watch(runner.exit_descriptor, lambda: self._runner_died(runner))
        self._loop.watch(runner.results, lambda: self._read_results(runner))
        self._loop.watch(runner.output, lambda: self._drain_once(runner))
        if chunk.request.task_s_max > 0:
            self._loop.call_at(runner.started + chunk.request.task_s_max, lambda: self._check_time(runner, chunk))
        return True

    def _buffers_of(self, chunk: Chunk) -> list[list[mmap.mmap]]:
        """Per task; of those that are unfinished, all are here."""
        found = [self._buffers.find(digests) for digests in chunk.request.buffers]
        return [[] if isinstance(buffers, str) else buffers for buffers in found]

    def _fork_refused(self, chunk: Chunk, error: OSError) -> None:
        chunk.fork_refusals += 1
        if chunk.fork_refusals > FORK_RETRIES_MAX:
            self._give_up(chunk, f"no process can be started: {error.strerror}")
            self._done(chunk)
            return
        for spare in list(self._spares):
            self._spare_died(spare)
        self._waiting.appendleft(chunk)
        self._loop.call_at(time.monotonic() + FORK_RETRY_S, self._start_waiting)

    def _read_results(self, runner: RunnerProcess) -> None:
        if self._link.is_congested:
            self._loop.forget(runner.results)
            return
        try:
            received = os.read(runner.results, READ_BYTES)
        except BlockingIOError:
            return
        if not received:
            self._loop.forget(runner.results)
            return
        if not self._take(runner, received):
            return
        chunk = runner.chunk
        assert chunk is not None, "only busy runners are read"
        if not chunk.unfinished:
            self._finish(runner, chunk)
        elif len(received) < BUSY_READ_BYTES:
            self._loop.forget(runner.results)
            self._loop.call_at(time.monotonic() + BATCH_S, lambda: self._watch_results(runner))

    def _watch_results(self, runner: RunnerProcess) -> None:
        if runner in self._busy and not self._loop.watches(runner.results):
            self._loop.watch(runner.results, lambda: self._read_results(runner))

    def _resume(self) -> None:
        for runner in self._busy:
            self._watch_results(runner)

    def _take(self, runner: RunnerProcess, received: bytes) -> bool:
        """Passes on the outcomes in `received`. False if the runner reported nonsense and is being killed for it."""
        chunk = runner.chunk
        assert chunk is not None, "only busy runners are read"
        batch: list[Outcome] = []
        batch_bytes = 0
        try:
            for index, status, payload in runner.reader.feed(received):
                if index not in chunk.unfinished:
                    raise BrokenReport(f"an outcome of task {index}, which is not running")
                if status == PART:
                    self._link.send(ResultPart(chunk.request.chunk, index, runner.part_offset, payload))
                    runner.part_offset += len(payload)
                    continue
                runner.part_offset = 0
                if status in (Status.RAISED, Status.DIED):
                    payload = self._with_output(runner, index, status, payload)
                del chunk.unfinished[index]
                if batch_bytes + len(payload) > BATCH_BYTES_MAX and batch:
                    self._link.send(ChunkResults(chunk.request.chunk, batch))
                    batch, batch_bytes = [], 0
                batch.append((index, status, payload))
                batch_bytes += len(payload)
        except BrokenReport as error:
            index, _ = runner.progress.read()
            runner.verdict = (index, Status.DIED, f"the task broke its process: it reported {error}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGKILL)
            self._loop.forget(runner.results)
        if batch:
            self._link.send(ChunkResults(chunk.request.chunk, batch))
        return runner.verdict is None

    def _with_output(self, runner: RunnerProcess, index: int, status: int, payload: bytes) -> bytes:
        self._drain_output(runner)
        output = runner.tail.of_failed(index)
        if status == Status.DIED:
            return _with_last_words(payload.decode(errors="replace"), output)
        error = decode(payload, RemoteException, step="runner")
        return encode(
            RemoteException(error.module, error.name, error.message, error.traceback, error.arguments, output)
        )

    def _read_output(self, runner: RunnerProcess) -> bool:
        try:
            printed = os.read(runner.output, 1 << 16)
        except BlockingIOError:
            return False
        if not printed:
            self._loop.forget(runner.output)
        runner.tail.feed(printed)
        return bool(printed)

    def _drain_once(self, runner: RunnerProcess) -> None:
        self._read_output(runner)

    def _drain_output(self, runner: RunnerProcess) -> None:
        # A task that goes on printing must not hold the worker here: a pipe holds no more than this.
        for _ in range(RESULTS_PIPE_BYTES >> 16):
            if not self._read_output(runner):
                return

    def _check_time(self, runner: RunnerProcess, chunk: Chunk) -> None:
        if runner not in self._busy or runner.chunk is not chunk or runner.verdict is not None:
            return
        limit, now = chunk.request.task_s_max, time.monotonic()
        index, started = runner.progress.read()
        started = min(started, now)
        is_running = index in chunk.unfinished
        # The page is not written atomically: believe what is read twice.
        if is_running and now >= started + limit and runner.progress.read()[0] == index:
            runner.verdict = (index, Status.TIMED_OUT, f"the task ran longer than its limit of {limit:g} s")
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGKILL)
            return
        again = started + limit if is_running else now + limit
        self._loop.call_at(max(again, now + 0.001), lambda: self._check_time(runner, chunk))

    # --- how runners end ---

    def _runner_died(self, runner: RunnerProcess) -> None:
        chunk = runner.chunk
        assert chunk is not None, "spares are watched by _spare_died"
        status = self._children.reap(runner.pid)
        with contextlib.suppress(BlockingIOError):
            while runner.verdict is None and (received := os.read(runner.results, READ_BYTES)):
                self._take(runner, received)
        self._drain_output(runner)
        if chunk.unfinished:
            self._blame(runner, chunk, status)
        self._finish(runner, chunk, is_reaped=True)

    def _blame(self, runner: RunnerProcess, chunk: Chunk, status: int) -> None:
        index, outcome, text = runner.verdict or (
            runner.progress.read()[0],
            Status.DIED,
            describe_exit(status),
        )
        if index in chunk.unfinished:
            del chunk.unfinished[index]
            payload = _with_last_words(text, runner.tail.of_running())
            self._link.send(ChunkResults(chunk.request.chunk, [(index, outcome, payload)]))
            return
        if runner.verdict is None:
            chunk.barren_runners += 1
        if chunk.barren_runners >= BARREN_RUNNERS_MAX:
            self._give_up(chunk, text)

    def _give_up(self, chunk: Chunk, text: str) -> None:
        outcomes = [(index, int(Status.DIED), text.encode()) for index in chunk.unfinished]
        self._link.send(ChunkResults(chunk.request.chunk, outcomes))
        chunk.unfinished.clear()

    def _finish(self, runner: RunnerProcess, chunk: Chunk, *, is_reaped: bool = False) -> None:
        chunk.elapsed_s += time.monotonic() - runner.started
        if not is_reaped and self._may_go_on(runner, chunk):
            self._reuse(runner, chunk)
            return
        # Neither the results nor the next chunk need wait until what the tasks left behind is cleared away.
        self._link.flush()
        self._busy.remove(runner)
        if not is_reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGKILL)
        is_done = not chunk.unfinished
        if not is_done:
            self._waiting.appendleft(chunk)
        self._start_waiting()
        self._retire(runner, is_reaped=is_reaped)
        if not self._children.sweep():
            for other in self._busy:
                other.verdict = other.verdict or (NOBODY, Status.DIED, "")
        if is_done:
            self._done(chunk)

    def _may_go_on(self, runner: RunnerProcess, chunk: Chunk) -> bool:
        is_fresh = runner.chunks < RUNNER_CHUNKS_MAX and time.monotonic() - runner.forked < RUNNER_S_MAX
        return runner.reader.is_clean and is_fresh and runner.verdict is None and not chunk.unfinished

    def _reuse(self, runner: RunnerProcess, chunk: Chunk) -> None:
        """Keeps a runner that is as it was before for the next chunk of its function."""
        self._busy.remove(runner)
        for descriptor in (runner.exit_descriptor, runner.results, runner.output):
            self._loop.forget(descriptor)
        runner.chunk = None
        runner.reader.is_clean = False
        self._keep_spare(runner)
        self._done(chunk)
        self._start_waiting()

    def _done(self, chunk: Chunk) -> None:
        self._link.send(ChunkDone(chunk.request.chunk, chunk.elapsed_s))

    def _retire(self, runner: RunnerProcess, *, is_reaped: bool = False) -> None:
        """Ends a runner and frees what the worker holds of it."""
        if not is_reaped:
            self._children.kill(runner.pid)
        for descriptor in (runner.exit_descriptor, runner.results, runner.output, runner.request):
            if descriptor != NOBODY:
                self._loop.forget(descriptor)
                os.close(descriptor)
        runner.progress.close()


def _with_last_words(text: str, output: str) -> bytes:
    return (f"{text}\nprinted last:\n{output}" if output.strip() else text).encode(errors="replace")
