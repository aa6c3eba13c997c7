"""Wire messages of the `tasks/1` and `command/1` streams. Only add: new fields need a default, tags are for ever.

A stream begins with an opening by the consumer and an answer by the lender. After `Opened`, the messages of
`croft.compute.worker_messages` travel both ways: the lender passes them on to and from the consumer's box.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from croft.compute.environment import Environment
from croft.wire.codec import Message

TASKS_PURPOSE = "tasks/1"
COMMAND_PURPOSE = "command/1"


class OpenTasks(Message, frozen=True, tag=30):
    """Asks for slots to run Python tasks. `memory_bytes` 0: whatever the lender gives by default.

    `job` names the asker's job; who says it understands `Declined` at the end of a session too. `cpus`: slots reserved
    for this job; 0: it takes turns with others at what nobody has reserved. `needs`: devices, one of each.
    `cpus_per_task`: slots that one task takes. `priority`: what of the same twin goes first here; higher does.
    `environment`: what its tasks import from; `sources`: peers that have its wheels, besides the asker.
    """

    python: str
    memory_bytes: int = 0
    job: str = ""
    cpus: int = 0
    needs: Sequence[str] = ()
    cpus_per_task: int = 1
    priority: int = 0
    environment: Environment | None = None
    sources: Sequence[str] = ()


class OpenCommand(Message, frozen=True, tag=31):
    """Asks for slots and a folder to run one command, and would wait in line for them for `wait_s`.

    `job`, `needs` and `environment` as for tasks. `lasts_s`: it ends after so long at the latest; 0: with its work. A
    lender from before leases knows none of these, and lets whoever asks wait in line. `priority`: before which of the
    same twin's.

    `circle`, `member`: the command may have streams with others of this circle of its consumer's, in which it is called
    so; "" for none. A lender from before circles gives it none.
    """

    cpus: float = 1.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    job: str = ""
    wait_s: float = inf
    lasts_s: float = 0.0
    needs: Sequence[str] = ()
    priority: int = 0
    circle: str = ""
    member: str = ""
    environment: Environment | None = None
    is_wasm: bool = False
    """The command is a WebAssembly program, which needs no more than the lowest grade of isolation."""


class PutStored(Message, frozen=True, tag=42):
    """Begins and ends a file at `path` below /job that is made of shares which the lender holds for the consumer.

    `content` names it, as `croft.storage.formats.Content`. Answered by `FilePut`; by `FileFailed` if not enough of it
    is there: then nothing was put.
    """

    path: str
    content: bytes
    is_executable: bool = False


class FetchBuffer(Message, frozen=True, tag=43):
    """A buffer of arguments, as in `BufferPart`, that the lender gets by itself from the peer that keeps it.

    `token` is under what name it does so. If it cannot be had, chunks that need it end with `Status.LOST`.
    """

    digest: bytes
    size: int
    peer: str
    token: bytes


class SendResults(Message, frozen=True, tag=44):
    """The results of this chunk are waited for after all: what is not kept yet is sent."""

    chunk: int


class DropResults(Message, frozen=True, tag=45):
    """Nobody needs these values any more, which were kept for this job."""

    tokens: list[bytes]


class FetchStored(Message, frozen=True, tag=46):
    """A buffer of arguments that is a stored file, which `digest` only names.

    The lender makes it of the shares on its own disk; `content` says how, as for `PutStored`. Where they are not, it
    gets the file from `peer`, which keeps it under `token`; if that is empty, chunks that need it end with
    `Status.LOST`.
    """

    digest: bytes
    size: int
    content: bytes
    peer: str = ""
    token: bytes = b""


class KeptResult(Message, frozen=True):
    """A value that stays at its lender: the BLAKE3 digest of its bytes in the safe codec, and its name there."""

    token: bytes
    size: int
    digest: bytes


class Opened(Message, frozen=True, tag=32):
    """Granted. `functions`: digests of the consumer's functions that the lender still has.

    `buffer_bytes_max`: how much of large arguments may be there at once; 0 of a peer that takes none. `has_streams`:
    the command gets the streams that were asked for. `reads_stored`: it understands `PutStored`. `environment`: the
    digest of the one that was asked for; empty of a peer that knows nothing of environments. `is_wasm`: it will run a
    WebAssembly program. `keeps_results`: it understands `FetchBuffer`, `FetchStored`, and chunks that are `keeps`.
    """

    slots: int
    functions: list[bytes]
    buffer_bytes_max: int = 0
    has_streams: bool = False
    reads_stored: bool = False
    environment: bytes = b""
    is_wasm: bool = False
    keeps_results: bool = False


class Declined(Message, frozen=True, tag=33):
    """Not granted; `code` as in `croft.errors`."""

    code: str
    message: str
    remedy: str = ""


class Preparing(Message, frozen=True, tag=190):
    """Not yet: the environment is being fetched and built. Said again while that lasts."""


ForKeeping = FetchBuffer | FetchStored | SendResults | DropResults
"""What a lender is told of results that stay where they were made, on a stream of tasks."""

Reply = Opened | Declined | Preparing
