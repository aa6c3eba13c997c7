"""The program inside a box: keeps functions, forks runners for chunks, runs commands, moves files.

Started as `python -sEP -m croft.compute.worker FD [SLOTS [DOORWAY]]`, or by its path. FD is the inherited socket to the
peer, over which `croft.compute.worker_messages` travel in frames; SLOTS is how many chunks run at once; DOORWAY is the
socket by which a command gets streams, if it may have any. Its current folder is `/job`. It ends when the socket does,
and everything below it ends with it.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__" and not __package__:
    # Started by path, perhaps under an interpreter in which Croft is not installed.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import cloudpickle  # noqa: F401 - pickles of functions refer to it, and every runner shares this import

from croft.compute.worker_buffers import Buffers
from croft.compute.worker_command import Commands
from croft.compute.worker_crew import Crew
from croft.compute.worker_files import Files
from croft.compute.worker_loop import Loop, PeerLink
from croft.compute.worker_messages import (
    ENVIRONMENT_VARIABLE,
    BufferPart,
    CancelChunk,
    CancelCommand,
    DropBuffer,
    FileBytes,
    FileEnd,
    GetFile,
    ListFiles,
    LoadFunction,
    PutFile,
    Ready,
    RunChunk,
    RunCommand,
    ToWorker,
)
from croft.compute.worker_processes import Children, become_subreaper, set_dumpable
from croft.errors import PeerMisbehaved
from croft.wire.codec import decode_union

PROTOCOL_BROKEN_CODE = 65


class Worker:
    """Takes messages from the peer to the part that answers them."""

    def __init__(self, descriptor: int, slots: int, doorway: int | None = None) -> None:
        self._loop = Loop()
        self._link = PeerLink(self._loop, descriptor, self._receive)
        self._children = Children()
        self._buffers = Buffers()
        self._crew = Crew(self._loop, self._link, self._children, self._buffers, slots)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files = Files(self._link, root)
        self._commands = Commands(self._loop, self._link, self._children, root, doorway)

    def run(self) -> None:
        """Serves until the peer closes the socket. Raises PeerMisbehaved."""
        self._link.send(Ready(f"{sys.version_info.major}.{sys.version_info.minor}"))
        try:
            while not self._link.is_closed:
                self._link.flush()
                quiet_s = self._crew.spare_after_s()
                if self._loop.turn(quiet_s) and quiet_s is not None:
                    self._crew.fork_spare()
        finally:
            self._commands.end()
            self._crew.end()

    def _receive(self, payload: bytes) -> None:
        message: ToWorker = decode_union(payload, ToWorker, step="worker")
        match message:
            case RunChunk():
                self._crew.submit(message)
            case LoadFunction():
                self._crew.load(message)
            case CancelChunk(number):
                self._crew.cancel(number)
            case BufferPart():
                self._buffers.put(message)
            case DropBuffer(digest):
                self._buffers.drop(digest)
            case PutFile():
                self._files.begin_put(message)
            case FileBytes(data):
                self._files.put_bytes(data)
            case FileEnd():
                self._files.end_put()
            case GetFile(path):
                self._files.get(path)
            case ListFiles(path):
                self._files.list(path)
            case RunCommand():
                if self._commands.is_running:
                    raise PeerMisbehaved("a second command while one is running", step="worker")
                self._commands.start(message)
            case CancelCommand():
                self._commands.cancel()


def _packages_index() -> int:
    """Where in the search path the installed packages begin, after the standard library."""
    places = [at for at, folder in enumerate(sys.path) if folder.endswith(("site-packages", "dist-packages"))]
    return places[0] if places else len(sys.path)


def main() -> int:
    """Runs the worker; returns its exit code."""
    descriptor = int(sys.argv[1])
    slots = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    doorway = int(sys.argv[3]) if len(sys.argv) > 3 else None
    for inherited in (descriptor, doorway):
        if inherited is not None:
            os.set_inheritable(inherited, False)
    os.set_blocking(descriptor, False)
    # A tty's interrupt is meant for the peer, which closes the box in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if environment := os.environ.get(ENVIRONMENT_VARIABLE):
        sys.path.insert(_packages_index(), environment)
    become_subreaper()
    worker = Worker(descriptor, slots, doorway)
    set_dumpable(False)
    try:
        worker.run()
    except PeerMisbehaved as error:
        sys.stderr.write(f"croft worker: {error}\n")
        return PROTOCOL_BROKEN_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
