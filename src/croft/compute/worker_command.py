"""Runs one command at a time in /job, passes on its output live, and leaves nothing of it behind.

Output is read only as fast as the peer takes it: a command whose output nobody reads blocks, and memory stays bounded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from croft.compute.worker_files import open_below
from croft.compute.worker_loop import Loop, PeerLink
from croft.compute.worker_messages import (
    CANNOT_START_CODE,
    DOORWAY_VARIABLE,
    NOT_FOUND_CODE,
    OUTPUT_PART_BYTES,
    OWN_PYTHON,
    WASM_MEMORY_VARIABLE,
    WASM_VARIABLES,
    CommandExited,
    Output,
    RunCommand,
)
from croft.compute.worker_processes import Children, become_subreaper, prefer_for_killing

if TYPE_CHECKING:
    import subprocess

WASM_MEMORY_BYTES = 256 << 20


@dataclass(slots=True, eq=False)
class _Running:
    process: subprocess.Popen[bytes]
    exit_descriptor: int
    pipes: dict[int, int]
    """Descriptors still open, and which of the command's (1 or 2) each one is."""
    status: int | None = None
    reason: str = ""
    is_cancelled: bool = field(default=False)


class Commands:
    """The command that runs, if one does."""

    def __init__(self, loop: Loop, link: PeerLink, children: Children, root: int, doorway: int | None) -> None:
        self._root = root
        self._doorway = doorway
        self._loop = loop
        self._link = link
        self._children = children
        self._running: _Running | None = None
        link.on_relief.append(self._resume)

    @property
    def is_running(self) -> bool:
        """Whether a command is running."""
        return self._running is not None

    def start(self, message: RunCommand) -> None:
        """Starts a command; what prevents it is told by an exit code as a shell would."""
        assert self._running is None, "the caller runs one at a time"
        import subprocess  # boxes that only run tasks start faster without it

        given = subprocess.DEVNULL
        doorway = () if self._doorway is None else (self._doorway,)
        told = {DOORWAY_VARIABLE: str(self._doorway)} if doorway else {}
        argv, variables, program = message.argv, message.environment, -1
        is_wasm = WASM_MEMORY_VARIABLE in os.environ or message.is_wasm
        if argv[:1] == [OWN_PYTHON] and not is_wasm:
            argv = [sys.executable, "-sP", *argv[1:]]
            croft = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            packages = message.environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
            told["PYTHONPATH"] = f"{packages}:{croft}" if packages else croft
        try:
            if message.stdin:
                given = open_below(self._root, message.stdin, os.O_RDONLY)
                os.unlink(message.stdin, dir_fd=self._root)
                os.set_blocking(given, True)
            if is_wasm:
                program = open_below(self._root, argv[0], os.O_RDONLY)
                argv = _wasm_argv(message, program)
                # Where nothing else holds foreign code, a variable such as LD_PRELOAD must not reach a native process.
                import json  # boxes of other commands start faster without it

                variables = {WASM_VARIABLES: json.dumps(dict(message.environment))}
            process = subprocess.Popen(
                argv,
                bufsize=0,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **variables, **told},
                pass_fds=(*doorway, *([program] if is_wasm else [])),
                process_group=0,
                preexec_fn=_become_command,  # safe: this process has one thread
            )
        except (OSError, ValueError, IndexError) as error:
            reason = f"cannot start {message.argv[0] if message.argv else 'an empty command'}: {error}"
            is_missing = isinstance(error, FileNotFoundError)
            self._link.send(CommandExited(NOT_FOUND_CODE if is_missing else CANNOT_START_CODE, 0, reason))
            return
        finally:
            for descriptor in (given, program):
                if descriptor >= 0:
                    os.close(descriptor)
        assert process.stdout is not None and process.stderr is not None
        pipes = {process.stdout.fileno(): 1, process.stderr.fileno(): 2}
        running = _Running(process, os.pidfd_open(process.pid), pipes)
        self._running = running
        self._children.add(process.pid)
        for pipe in pipes:
            os.set_blocking(pipe, False)
        self._loop.watch(running.exit_descriptor, lambda: self._exited(running))
        self._resume()
        if message.time_s_max > 0:
            reason = f"the command ran longer than its limit of {message.time_s_max:g} s"
            self._loop.call_at(time.monotonic() + message.time_s_max, lambda: self._kill(running, reason))

    def cancel(self) -> None:
        """Kills the running command, if any; its end is told like any other."""
        if self._running is not None:
            self._kill(self._running, "cancelled")

    def end(self) -> None:
        """Kills the running command without a word to the peer."""
        if self._running is not None and self._running.status is None:
            self._children.kill(self._running.process.pid)

    def _kill(self, running: _Running, reason: str) -> None:
        if self._running is not running:
            return
        if running.status is None:
            running.reason = reason
            self._exited(running, is_killed=True)
        elif reason == "cancelled":
            # It has ended, but the peer does not take its last output: it need not.
            for pipe in list(running.pipes):
                self._close(running, pipe)
            self._report(running)

    def _exited(self, running: _Running, *, is_killed: bool = False) -> None:
        pid = running.process.pid
        running.status = self._children.kill(pid) if is_killed else self._children.reap(pid)
        running.process.returncode = os.waitstatus_to_exitcode(running.status)
        self._loop.forget(running.exit_descriptor)
        os.close(running.exit_descriptor)
        # With the leader gone all that it started has fallen to the worker, and the pipes come to their end.
        self._children.sweep()
        self._report(running)

    def _resume(self) -> None:
        running = self._running
        if running is None:
            return
        for pipe in running.pipes:
            if not self._loop.watches(pipe):
                self._loop.watch(pipe, partial(self._read, running, pipe))

    def _read(self, running: _Running, pipe: int) -> None:
        if self._link.is_congested:
            self._loop.forget(pipe)
            return
        try:
            printed = os.read(pipe, OUTPUT_PART_BYTES)
        except BlockingIOError:
            return
        if printed:
            self._link.send(Output(running.pipes[pipe], printed))
        else:
            self._close(running, pipe)
            self._report(running)

    def _close(self, running: _Running, pipe: int) -> None:
        self._loop.forget(pipe)
        stream = running.process.stdout if running.pipes.pop(pipe) == 1 else running.process.stderr
        assert stream is not None
        stream.close()

    def _report(self, running: _Running) -> None:
        """Tells the end once the command has ended and all its output has been passed on."""
        if running.status is None or running.pipes or self._running is not running:
            return
        self._running = None
        code = os.waitstatus_to_exitcode(running.status)
        self._link.send(CommandExited(max(code, 0), max(-code, 0), running.reason))


def _wasm_argv(message: RunCommand, program: int) -> list[str]:
    """The command line that runs a WebAssembly program, whatever the message says that it is."""
    runner = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wasm_runner.py")
    memory_bytes = os.environ.get(WASM_MEMORY_VARIABLE, str(WASM_MEMORY_BYTES))
    return [sys.executable, "-sEP", runner, str(max(0, message.fuel)), memory_bytes, str(program), *message.argv]


def _become_command() -> None:
    become_subreaper()
    prefer_for_killing()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
