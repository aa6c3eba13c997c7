"""Messages between a peer and the worker inside one of its boxes, and, forwarded, between consumer and lender.

Each travels as one frame of `croft.wire.frames`. Only add: new fields need a default, tags are for ever.

The worker is process 1 of its box. It keeps functions by digest and forks one *runner* per chunk, so that what a chunk
leaves behind dies with it. A chunk is a short list of tasks of one function; its tasks run one after the other.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from croft.wire.codec import Message

FUNCTION_BYTES_MAX = 64 << 20
ARGUMENT_BYTES_MAX = 64 << 20
RESULT_BYTES_MAX = 512 << 20
BUFFER_BYTES_MAX = 1 << 30
BUFFER_BYTES_MIN = 256 << 10
"""Buffers of arguments (PEP 574) that are smaller travel inside the pickle."""
BUFFERS_MAX = 1_000
"""Per task."""
PART_BYTES = 1 << 20
"""Large arguments and results travel in parts of this size."""
OWN_PYTHON = "{python}"
"""The program of a command that is to run under the interpreter of the box, in which Croft can be imported."""
CANNOT_START_CODE = 126
NOT_FOUND_CODE = 127
"""Exit codes of a command that could not be started, as those of a shell."""
DOORWAY_VARIABLE = "CROFT_DOORWAY"
"""Tells a command that may have streams the number of the socket by which it gets them."""
FILE_PART_BYTES = 1 << 20
FILES_LISTED_MAX = 10_000
FILE_DEPTH_MAX = 64
OUTPUT_PART_BYTES = 64 << 10
WASM_MEMORY_VARIABLE = "CROFT_WASM_MEMORY_BYTES"
"""Set in a box that runs WebAssembly programs and nothing else: how large the memory of one may be."""
WASM_VARIABLES = "CROFT_WASM_VARIABLES"
"""Holds a WebAssembly program's environment as JSON, for `croft.compute.wasm_runner`."""
ENVIRONMENT_VARIABLE = "CROFT_ENVIRONMENT"
"""Names a folder that a box's tasks import from before the interpreter's own packages."""
KEPT_BYTES_MIN = PART_BYTES
"""Results that are larger stay at their lenders where nobody waits for them yet."""
TASK_OUTPUT_BYTES_MAX = 4 << 10
"""What is kept, from the end, of what a task printed; it travels with failures only."""


class Status(enum.IntEnum):
    """How one task ended. The payload of an outcome depends on it."""

    OK = 0
    """Payload: the value in the safe codec (`croft.wire.values`)."""
    RAISED = 1
    """Payload: an encoded `RemoteException`."""
    DIED = 2
    """Payload: UTF-8 text naming the signal, exit code or exhausted limit."""
    TIMED_OUT = 3
    """Payload: UTF-8 text."""
    UNCARRIED = 4
    """The safe codec cannot carry the result. Payload: UTF-8 text naming the type and where in the result it is."""
    TOO_LARGE = 5
    """The encoded result exceeds RESULT_BYTES_MAX, or the arguments what the box has room for. Payload: UTF-8 text."""
    DISPUTED = 6
    """No majority of peers says the same. Payload: UTF-8 text. Never from a worker."""
    KEPT = 7
    """It went well, and the value stays at its lender. Payload: `croft.compute.messages.KeptResult`. From lenders."""
    LOST = 8
    """Not run, or in vain: what others keep for it could not be fetched, or its value not be kept. Payload: the digests
    of the buffers that are lost, one after the other. From lenders."""
    UNREADABLE = 9
    """What others keep for it means nothing there: its classes are the program's own. Payload: nothing. Never from a
    lender."""


class RemoteException(Message, frozen=True):
    """An exception that a task raised. `arguments` is the safe-codec tuple of `args`, empty if it cannot be carried."""

    module: str
    name: str
    message: str
    traceback: str
    arguments: bytes = b""
    output: str = ""


Outcome = tuple[int, int, bytes]
"""Index of the task in its chunk, `Status`, payload."""


# --- to the worker ---------------------------------------------------------------------------------------------------


class LoadFunction(Message, frozen=True, tag=1):
    """A function by the BLAKE3 digest of its cloudpickle bytes. Sent before the first chunk that uses it."""

    digest: bytes
    pickled: bytes
    python: str
    """Major.minor of the sender's interpreter: pickles are not loaded across minor versions."""


class RunChunk(Message, frozen=True, tag=2):
    """Run these tasks of one function in order, in one fresh runner. `arguments`: pickles of (args, kwargs)."""

    chunk: int
    function: bytes
    arguments: list[bytes]
    task_s_max: float = 0.0
    """Time limit of each task in seconds; 0 for none."""
    buffers: list[list[bytes]] = msgspec.field(default_factory=list)
    """Per task, the digests of the buffers that its pickle refers to, in order (PEP 574); empty if no task has any."""
    keeps: bool = False
    """Results over KEPT_BYTES_MIN stay at the lender. Nothing to a worker."""


class CancelChunk(Message, frozen=True, tag=3):
    """Kill the chunk's runner, or forget the chunk if it waits. Answered by `ChunkDone` either way."""

    chunk: int


class PutFile(Message, frozen=True, tag=4):
    """Begins a file at a relative `path` below /job; `FileBytes` follow, then `FileEnd`. Parents are made."""

    path: str
    is_executable: bool = False


class GetFile(Message, frozen=True, tag=5):
    """Asks for a regular file below /job: answered by `FileBytes`… `FileEnd`, or by `FileFailed`."""

    path: str


class RunCommand(Message, frozen=True, tag=6):
    """Run a command in /job; its output comes live, then `CommandExited`. One at a time.

    `stdin`: a file below /job that it reads as its standard input and that is then gone; "" for an empty one.
    `is_wasm`: it is a WebAssembly program, a file below /job; `fuel`: what it may burn, 0: as much as it likes.
    """

    argv: list[str]
    environment: dict[str, str]
    time_s_max: float = 0.0
    stdin: str = ""
    is_wasm: bool = False
    fuel: int = 0


class CancelCommand(Message, frozen=True, tag=7):
    """Kill the command and all it started."""


class ListFiles(Message, frozen=True, tag=8):
    """Asks which regular files are in a folder below /job, at any depth: answered by `FileList` or `FileFailed`."""

    path: str


class BufferPart(Message, frozen=True, tag=9):
    """The next bytes of a buffer of `size` bytes, by the BLAKE3 digest of all; before the first task that uses it."""

    digest: bytes
    size: int
    offset: int
    data: bytes


class DropBuffer(Message, frozen=True, tag=12):
    """No task that is still to come uses this buffer."""

    digest: bytes


# --- both ways -------------------------------------------------------------------------------------------------------


class FileBytes(Message, frozen=True, tag=10):
    """The next part of the file in transfer, at most FILE_PART_BYTES."""

    data: bytes


class FileEnd(Message, frozen=True, tag=11):
    """The file is complete."""


# --- from the worker -------------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, tag=20):
    """The worker is up. First message it sends."""

    python: str


class ChunkResults(Message, frozen=True, tag=21):
    """Outcomes so far, a few milliseconds' worth at a time; each task's outcome is sent once."""

    chunk: int
    outcomes: list[Outcome]


class ChunkDone(Message, frozen=True, tag=22):
    """No more outcomes of this chunk will come. `elapsed_s` is the time its runner worked."""

    chunk: int
    elapsed_s: float


class FunctionFailed(Message, frozen=True, tag=23):
    """The function cannot be loaded: every task of it fails with this reason."""

    digest: bytes
    reason: str


class Output(Message, frozen=True, tag=24):
    """What the command printed; `descriptor` is 1 or 2. At most OUTPUT_PART_BYTES."""

    descriptor: int
    data: bytes


class CommandExited(Message, frozen=True, tag=25):
    """The command ended. `signal` is 0 unless one killed it; `reason` names a limit that did."""

    exit_code: int
    signal: int = 0
    reason: str = ""


class FileFailed(Message, frozen=True, tag=26):
    """A file could not be written or read; `reason` says why."""

    path: str
    reason: str


class FilePut(Message, frozen=True, tag=27):
    """The file begun by `PutFile` is complete on the box's disk."""

    path: str


class FileList(Message, frozen=True, tag=28):
    """The files in a folder, by their paths below it; at most FILES_LISTED_MAX."""

    paths: list[str]


class ResultPart(Message, frozen=True, tag=29):
    """The next bytes of a result that is too large for one message; what is left comes as the task's outcome.

    `offset` 0 begins it anew. If the outcome is not OK, what came before it is void.
    """

    chunk: int
    task: int
    offset: int
    data: bytes


ToWorker = (
    LoadFunction
    | RunChunk
    | CancelChunk
    | PutFile
    | GetFile
    | RunCommand
    | CancelCommand
    | ListFiles
    | BufferPart
    | DropBuffer
    | FileBytes
    | FileEnd
)
FromWorker = (
    Ready
    | ChunkResults
    | ChunkDone
    | FunctionFailed
    | Output
    | CommandExited
    | FileBytes
    | FileEnd
    | FileFailed
    | FilePut
    | FileList
    | ResultPart
)


def leading_parts(payload: bytes) -> Iterator[bytes]:
    """What travels of a large payload before its outcome; nothing of a small one."""
    for at in range(0, len(payload) - PART_BYTES, PART_BYTES):
        yield payload[at : at + PART_BYTES]


def last_part(payload: bytes) -> bytes:
    """What travels of a payload in its outcome: what `leading_parts` leaves."""
    if len(payload) <= PART_BYTES:
        return payload
    return payload[(len(payload) - 1) // PART_BYTES * PART_BYTES :]
