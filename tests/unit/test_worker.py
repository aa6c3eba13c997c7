"""The worker as a plain process: what it promises about tasks, commands and files, without any box around it."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from croft.compute.worker_buffers import Buffers
from croft.compute.worker_messages import (
    FILE_PART_BYTES,
    RESULT_BYTES_MAX,
    TASK_OUTPUT_BYTES_MAX,
    BufferPart,
    CancelChunk,
    CancelCommand,
    ChunkDone,
    ChunkResults,
    CommandExited,
    DropBuffer,
    FileBytes,
    FileEnd,
    FileFailed,
    FilePut,
    FunctionFailed,
    GetFile,
    Output,
    PutFile,
    RemoteException,
    RunCommand,
    Status,
)
from croft.wire.codec import decode
from croft.wire.values import decode_value
from support.worker_process import WorkerProcess, arguments, load_message

SOON_S = 20.0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path, slots=2) as running:
        yield running


def raised(payload: bytes) -> RemoteException:
    return decode(payload, RemoteException, step="test")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.005)
    raise AssertionError(f"process {pid} is still alive")


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.002)
    raise AssertionError(f"{path} never appeared")


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_a_result_comes_back_in_the_safe_codec(worker: WorkerProcess) -> None:
    outcomes = worker.run(lambda a, b=0: {"sum": a + b}, [arguments(1, b=2), arguments(5)])

    assert [(status, decode_value(payload)) for status, payload in outcomes] == [
        (Status.OK, {"sum": 3}),
        (Status.OK, {"sum": 5}),
    ]


def test_an_exception_comes_back_with_arguments_and_a_traceback_free_of_our_frames(worker: WorkerProcess) -> None:
    def fail(x: int) -> None:
        raise ValueError("bad value", x)

    [(status, payload)] = worker.run(fail, [arguments(7)])

    error = raised(payload)
    assert status == Status.RAISED
    assert (error.module, error.name) == ("builtins", "ValueError")
    assert list(decode_value(error.arguments)) == ["bad value", 7]  # type: ignore[call-overload]
    assert "in fail" in error.traceback and "worker_runner" not in error.traceback


def test_an_exception_that_cannot_be_printed_is_still_reported(worker: WorkerProcess) -> None:
    def fail() -> None:
        class Spiteful(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        raise Spiteful

    [(status, payload)] = worker.run(fail, [arguments()])

    assert status == Status.RAISED and "Spiteful" in raised(payload).name


def test_a_result_that_the_codec_cannot_carry_names_its_type(worker: WorkerProcess) -> None:
    [(status, payload)] = worker.run(lambda: threading.Lock(), [arguments()])

    assert status == Status.UNCARRIED and b"lock" in payload


def test_a_result_over_the_limit_is_too_large(worker: WorkerProcess) -> None:
    outcomes = worker.run(lambda n: b"x" * n, [arguments(RESULT_BYTES_MAX + 1), arguments(3)])

    assert [status for status, _ in outcomes] == [Status.TOO_LARGE, Status.OK]


def test_results_of_many_megabytes_arrive_whole(worker: WorkerProcess) -> None:
    outcomes = worker.run(lambda n: bytes([n]) * (5 << 20), [arguments(n) for n in range(4)])

    assert [decode_value(payload) for _, payload in outcomes] == [bytes([n]) * (5 << 20) for n in range(4)]


def test_an_array_of_many_megabytes_arrives_whole(worker: WorkerProcess) -> None:
    def make(n: int) -> object:
        import numpy

        return numpy.arange(n).reshape(2, -1)

    [(status, payload)] = worker.run(make, [arguments(1 << 20)])

    assert status == Status.OK
    assert np.array_equal(decode_value(payload), np.arange(1 << 20).reshape(2, -1))  # type: ignore[arg-type]


def with_buffers(*args: object) -> tuple[bytes, list[bytes]]:
    """One task's pickled arguments, and the buffers beside them."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps((args, {}), protocol=5, buffer_callback=buffers.append)
    return pickled, [bytes(buffer.raw()) for buffer in buffers]


def test_tasks_share_a_buffer_and_none_sees_what_another_writes(worker: WorkerProcess) -> None:
    def overwrite(array: object, value: int) -> object:
        before = int(array.sum())  # type: ignore[attr-defined]  # an array
        array[:] = value  # type: ignore[index]
        return before, int(array.sum())  # type: ignore[attr-defined]

    calls = [with_buffers(np.ones(1000, "u1"), n) for n in range(3)]
    digest = worker.put(calls[0][1][0])
    function = worker.load(overwrite)

    chunks = [worker.submit(function, [pickled], buffers=[[digest]]) for pickled, _ in calls]

    outcomes = worker.finish(*chunks)
    assert [decode_value(outcomes[chunk][0][2]) for chunk in chunks] == [(1000, 1000 * n) for n in range(3)]


def test_a_buffer_can_be_dropped_while_a_task_that_has_it_runs(worker: WorkerProcess, tmp_path: Path) -> None:
    started, may_end = tmp_path / "started", tmp_path / "may_end"

    def wait(array: object) -> int:
        started.write_text("yes")
        while not may_end.exists():
            time.sleep(0.005)
        return int(array.sum())  # type: ignore[attr-defined]

    pickled, [buffer] = with_buffers(np.ones(1000, "u1"))
    digest = worker.put(buffer)
    chunk = worker.submit(worker.load(wait), [pickled], buffers=[[digest]])
    wait_for(started)
    worker.send(DropBuffer(digest))
    may_end.write_text("yes")

    assert decode_value(worker.finish(chunk)[chunk][0][2]) == 1000


def test_a_task_whose_buffer_is_not_there_ends_the_worker(worker: WorkerProcess) -> None:
    pickled, _ = with_buffers(np.ones(1000, "u1"))
    worker.submit(worker.load(lambda array: len(array)), [pickled], buffers=[[b"never sent"]])

    with pytest.raises(EOFError):
        while True:
            worker.receive()


def test_a_buffer_that_no_memory_holds_is_named_to_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("out of memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    buffers = Buffers()
    buffers.put(BufferPart(b"d", 5, 0, b"hello"))

    assert "5 bytes" in buffers.find([b"d"])


def test_arguments_that_do_not_unpickle_fail_only_their_task(worker: WorkerProcess) -> None:
    outcomes = worker.run(lambda x: x, [b"nonsense", arguments(1)])

    assert [status for status, _ in outcomes] == [Status.RAISED, Status.OK]


def test_a_large_chunk_is_run_in_order_and_each_outcome_comes_once(worker: WorkerProcess) -> None:
    outcomes = worker.run(lambda x, _: x, [arguments(n, "y" * 500) for n in range(500)])

    assert [decode_value(payload) for _, payload in outcomes] == list(range(500))


def test_chunks_of_several_functions_run_side_by_side(worker: WorkerProcess) -> None:
    one, two = worker.load(lambda x: x + 1), worker.load(lambda x: x * 2)
    chunks = [worker.submit(digest, [arguments(n)]) for n in range(10) for digest in (one, two)]

    outcomes = worker.finish(*chunks)

    values = [decode_value(outcomes[chunk][0][2]) for chunk in chunks]
    assert values == [f(n) for n in range(10) for f in (lambda x: x + 1, lambda x: x * 2)]


def test_a_slow_task_does_not_delay_an_earlier_result(worker: WorkerProcess, tmp_path: Path) -> None:
    def wait_for_release(path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.001)

    released = tmp_path / "released"
    (tmp_path / "there").touch()
    digest = worker.load(wait_for_release)
    chunk = worker.submit(digest, [arguments(str(tmp_path / "there"))] * 5 + [arguments(str(released))])

    seen: list[int] = []
    while len(seen) < 5:
        message = worker.receive()
        assert isinstance(message, ChunkResults)
        seen += [index for index, _, _ in message.outcomes]
    released.touch()

    assert seen == [0, 1, 2, 3, 4]
    assert list(worker.finish(chunk)[chunk]) == [5]


# --- death -----------------------------------------------------------------------------------------------------------


def die_if(x: int, how: str) -> int:
    if x == 1:
        if how == "_exit":
            os._exit(3)
        if how == "exit":
            sys.exit(4)
        os.kill(os.getpid(), signal.SIGSEGV)
    return x


@pytest.mark.parametrize(("how", "cause"), [("_exit", "exit code 3"), ("exit", "sys.exit(4)"), ("", "SIGSEGV")])
def test_only_the_task_that_ends_its_process_is_blamed(worker: WorkerProcess, how: str, cause: str) -> None:
    outcomes = worker.run(die_if, [arguments(n, how) for n in range(5)])

    assert [status for status, _ in outcomes] == [Status.OK, Status.DIED, Status.OK, Status.OK, Status.OK]
    assert cause in outcomes[1][1].decode()


def test_a_task_that_runs_too_long_is_killed_and_the_others_go_on(worker: WorkerProcess) -> None:
    outcomes = worker.run(lambda s: time.sleep(s), [arguments(s) for s in (0, 60, 0, 60, 0)], task_s_max=0.2)

    assert [status for status, _ in outcomes] == [
        Status.OK,
        Status.TIMED_OUT,
        Status.OK,
        Status.TIMED_OUT,
        Status.OK,
    ]
    assert "0.2 s" in outcomes[1][1].decode()


def test_a_task_that_reports_nonsense_in_our_name_is_blamed(worker: WorkerProcess) -> None:
    def forge(x: int) -> int:
        if x == 1:
            for descriptor in range(3, 64):
                try:
                    os.write(descriptor, b"\xff" * 64)
                except OSError:
                    pass
            time.sleep(60)
        return x

    outcomes = worker.run(forge, [arguments(n) for n in range(3)])

    assert [status for status, _ in outcomes] == [Status.OK, Status.DIED, Status.OK]


def test_a_task_that_closes_every_descriptor_hurts_only_itself(worker: WorkerProcess) -> None:
    def close_all(x: int) -> int:
        if x == 0:
            os.closerange(0, 1024)
        return x

    outcomes = worker.run(close_all, [arguments(0), arguments(1)])

    assert [status for status, _ in outcomes] == [Status.DIED, Status.OK]


def test_threads_that_still_run_do_not_hold_up_the_end_of_a_chunk(worker: WorkerProcess) -> None:
    def leave_thread() -> int:
        threading.Thread(target=time.sleep, args=(600,)).start()
        return 1

    assert worker.run(leave_thread, [arguments()])[0][0] == Status.OK


@pytest.mark.parametrize("is_crashing", [False, True])
def test_a_daemon_does_not_outlive_its_chunk(worker: WorkerProcess, tmp_path: Path, is_crashing: bool) -> None:
    def start_daemon(path: str, is_crashing: bool) -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                with open(path, "w") as file:
                    file.write(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        while not os.path.exists(path) or not os.path.getsize(path):
            time.sleep(0.001)
        if is_crashing:
            os._exit(1)

    path = tmp_path / "daemon"
    worker.run(start_daemon, [arguments(str(path), is_crashing)])

    wait_until_gone(int(path.read_text()))


def test_a_daemon_of_a_finished_chunk_dies_while_another_chunk_runs_on(worker: WorkerProcess, tmp_path: Path) -> None:
    def start_daemon(path: str) -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                with open(path, "w") as file:
                    file.write(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        while not os.path.exists(path) or not os.path.getsize(path):
            time.sleep(0.001)

    def outlast(path: str) -> bool:
        child = subprocess.Popen(["sleep", "600"])
        while not os.path.exists(path):
            time.sleep(0.001)
        is_alive = child.poll() is None
        child.kill()
        return is_alive

    long_chunk = worker.submit(worker.load(outlast), [arguments(str(tmp_path / "end"))])
    worker.run(start_daemon, [arguments(str(tmp_path / "daemon"))])
    wait_until_gone(int((tmp_path / "daemon").read_text()))
    (tmp_path / "end").touch()

    assert decode_value(worker.finish(long_chunk)[long_chunk][0][2]) is True


def test_a_killed_spare_is_replaced(worker: WorkerProcess) -> None:
    digest = worker.load(lambda: os.getppid())
    chunk = worker.submit(digest, [arguments()])
    parent = decode_value(worker.finish(chunk)[chunk][0][2])
    time.sleep(0.05)
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)

    chunk = worker.submit(digest, [arguments()])

    assert worker.finish(chunk)[chunk][0][1] == Status.OK


# --- cancellation and functions --------------------------------------------------------------------------------------


def test_a_cancelled_chunk_ends_at_once_with_what_it_started(worker: WorkerProcess, tmp_path: Path) -> None:
    def hang(path: str) -> None:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(path, "w") as file:
            file.write(str(child.pid))
        child.wait()

    path = tmp_path / "child"
    chunk = worker.submit(worker.load(hang), [arguments(str(path))])
    child = int(wait_for(path))
    worker.send(CancelChunk(chunk))

    assert worker.finish(chunk) == {chunk: {}}
    wait_until_gone(child)


def test_a_chunk_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, slots=1) as worker:
        digest = worker.load(lambda s: time.sleep(s))
        running, waiting = worker.submit(digest, [arguments(600)]), worker.submit(digest, [arguments(600)])
        worker.send(CancelChunk(waiting))

        assert worker.receive() == ChunkDone(waiting, 0.0)
        worker.send(CancelChunk(running))
        assert worker.finish(running) == {running: {}}


def test_a_function_of_another_python_is_refused_by_both_versions(worker: WorkerProcess) -> None:
    worker.send(load_message(lambda: 1, python="2.7"))

    answer = worker.receive()

    assert isinstance(answer, FunctionFailed)
    assert "2.7" in answer.reason and f"{sys.version_info.major}.{sys.version_info.minor}" in answer.reason


def test_a_function_that_cannot_be_loaded_fails_every_chunk_of_it(worker: WorkerProcess) -> None:
    class Unloadable:
        def __reduce__(self) -> tuple[object, ...]:
            return sys.exit, ("no",)

    message = load_message(Unloadable())  # type: ignore[arg-type]
    worker.send(message)
    failed = worker.receive()
    chunk = worker.submit(message.digest, [arguments()])

    assert isinstance(failed, FunctionFailed) and "SystemExit" in failed.reason
    assert isinstance(worker.receive(), FunctionFailed)
    assert worker.receive() == ChunkDone(chunk, 0.0)


def test_a_function_that_was_never_sent_fails_its_chunk(worker: WorkerProcess) -> None:
    chunk = worker.submit(b"?" * 32, [arguments()])

    assert isinstance(worker.receive(), FunctionFailed)
    assert worker.receive() == ChunkDone(chunk, 0.0)


# --- what tasks print ------------------------------------------------------------------------------------------------


def test_a_failure_carries_the_end_of_what_its_own_task_printed(worker: WorkerProcess) -> None:
    def speak(x: int) -> None:
        print("task", x)
        os.write(2, b"raw" + str(x).encode())
        if x % 2:
            raise ValueError

    outcomes = worker.run(speak, [arguments(n) for n in range(6)])

    for number in (1, 3, 5):
        output = raised(outcomes[number][1]).output
        assert f"task {number}" in output and f"raw{number}" in output
        assert f"task {number - 1}" not in output


def test_what_a_dying_task_printed_is_told(worker: WorkerProcess) -> None:
    def die() -> None:
        os.write(1, b"last words")
        os._exit(1)

    [(_, payload)] = worker.run(die, [arguments()])

    assert b"last words" in payload


def test_printing_without_end_neither_blocks_nor_grows(worker: WorkerProcess) -> None:
    def flood() -> None:
        line = b"x" * (1 << 20)
        for _ in range(300):
            os.write(1, line)
        print("the end")
        raise ValueError

    [(status, payload)] = worker.run(flood, [arguments()])

    output = raised(payload).output
    assert status == Status.RAISED
    assert output.endswith("the end\n") and len(output) <= TASK_OUTPUT_BYTES_MAX
    status_lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in status_lines if line.startswith("VmHWM"))
    assert peak_kib < 100 << 10


# --- commands --------------------------------------------------------------------------------------------------------


def run_command(worker: WorkerProcess, message: RunCommand) -> tuple[dict[int, bytes], CommandExited]:
    worker.send(message)
    printed = {1: b"", 2: b""}
    while not isinstance(answer := worker.receive(), CommandExited):
        assert isinstance(answer, Output)
        printed[answer.descriptor] += answer.data
    return printed, answer


def test_a_command_gives_both_streams_and_its_exit_code(worker: WorkerProcess) -> None:
    script = "cat; echo out; echo err >&2; echo $WORD; exit 7"

    printed, exited = run_command(worker, RunCommand(["sh", "-c", script], {"WORD": "given"}))

    assert printed == {1: b"out\ngiven\n", 2: b"err\n"}
    assert exited == CommandExited(7)


def test_a_command_killed_by_a_signal_names_it(worker: WorkerProcess) -> None:
    _, exited = run_command(worker, RunCommand(["sh", "-c", "kill -TERM $$"], {}))

    assert exited == CommandExited(0, signal.SIGTERM)


def test_a_command_that_does_not_exist_is_told_like_a_shell_does(worker: WorkerProcess) -> None:
    _, exited = run_command(worker, RunCommand(["no-such-program"], {}))

    assert exited.exit_code == 127 and "no-such-program" in exited.reason


def test_a_command_over_its_time_is_killed_with_all_it_started(worker: WorkerProcess, tmp_path: Path) -> None:
    script = "setsid sleep 600 & echo $! > child; wait"

    _, exited = run_command(worker, RunCommand(["sh", "-c", script], {}, time_s_max=0.3))

    assert exited.signal == signal.SIGKILL and "0.3 s" in exited.reason
    wait_until_gone(int((tmp_path / "child").read_text()))


def test_a_cancelled_command_ends_at_once(worker: WorkerProcess) -> None:
    worker.send(RunCommand(["sh", "-c", "echo started; sleep 600"], {}))
    assert isinstance(worker.receive(), Output)
    worker.send(CancelCommand())

    assert worker.receive() == CommandExited(0, signal.SIGKILL, "cancelled")


def test_a_daemon_does_not_outlive_its_command(worker: WorkerProcess, tmp_path: Path) -> None:
    _, exited = run_command(worker, RunCommand(["sh", "-c", "setsid sleep 600 & echo $! > child"], {}))

    assert exited == CommandExited(0)
    wait_until_gone(int((tmp_path / "child").read_text()))


def test_output_that_nobody_reads_blocks_the_command_and_all_of_it_arrives_later(worker: WorkerProcess) -> None:
    total = 40 << 20
    worker.send(RunCommand(["head", "-c", str(total), "/dev/zero"], {}))
    time.sleep(0.3)
    resident_pages = int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1])
    received = 0
    while not isinstance(answer := worker.receive(), CommandExited):
        assert isinstance(answer, Output)
        received += len(answer.data)

    assert received == total
    assert resident_pages * os.sysconf("SC_PAGE_SIZE") < total


# --- files -----------------------------------------------------------------------------------------------------------


def put(worker: WorkerProcess, path: str, data: bytes, *, is_executable: bool = False) -> object:
    worker.send(PutFile(path, is_executable))
    for start in range(0, len(data), FILE_PART_BYTES):
        worker.send(FileBytes(data[start : start + FILE_PART_BYTES]))
    worker.send(FileEnd())
    return worker.receive()


def get(worker: WorkerProcess, path: str) -> bytes | FileFailed:
    worker.send(GetFile(path))
    data = b""
    while not isinstance(answer := worker.receive(), FileEnd):
        if isinstance(answer, FileFailed):
            return answer
        assert isinstance(answer, FileBytes)
        data += answer.data
    return data


def test_a_file_goes_in_and_comes_back(worker: WorkerProcess, tmp_path: Path) -> None:
    data = os.urandom(3 * FILE_PART_BYTES + 17)

    assert put(worker, "a/b/c.bin", data, is_executable=True) == FilePut("a/b/c.bin")
    assert get(worker, "a/b/c.bin") == data
    assert (tmp_path / "a/b/c.bin").stat().st_mode & 0o100


def test_an_empty_file_goes_in_and_comes_back(worker: WorkerProcess) -> None:
    assert put(worker, "empty", b"") == FilePut("empty")
    assert get(worker, "empty") == b""


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", "", ".", "a//b", "link", "folder/x"])
def test_a_path_that_leads_elsewhere_is_refused_both_ways(worker: WorkerProcess, tmp_path: Path, path: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")

    assert isinstance(get(worker, path), FileFailed)
    assert isinstance(put(worker, path, b"x"), FileFailed)


def test_a_pipe_is_not_read_as_a_file(worker: WorkerProcess, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert isinstance(get(worker, "pipe"), FileFailed)


def test_after_a_failed_file_the_next_one_works(worker: WorkerProcess) -> None:
    assert isinstance(put(worker, "../no", b"x" * 100), FileFailed)
    assert put(worker, "yes", b"y") == FilePut("yes")


# --- the worker itself -----------------------------------------------------------------------------------------------


def test_when_the_peer_goes_nothing_stays(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path)

    def hang(path: str) -> None:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)

    worker.submit(worker.load(hang), [arguments(str(tmp_path / "runner"))])
    runner = int(wait_for(tmp_path / "runner"))

    assert worker.close() == 0
    wait_until_gone(runner)


def test_a_peer_that_breaks_the_protocol_ends_the_worker(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path)
    worker.socket.sendall(b"\xff\xff\xff\xff")

    with pytest.raises(EOFError):
        worker.receive()
    assert worker.close() == 65


def test_a_task_finds_no_socket_to_the_peer(worker: WorkerProcess) -> None:
    def sockets() -> int:
        found = 0
        for descriptor in range(3, 256):
            try:
                with socket.socket(fileno=os.dup(descriptor)):
                    found += 1
            except OSError:
                pass
        return found

    assert decode_value(worker.run(sockets, [arguments()])[0][1]) == 0
