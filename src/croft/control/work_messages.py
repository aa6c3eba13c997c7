"""Messages on the work socket, between this machine's programs and their daemon. One connection is one job.

The first frame from the program opens the job; closing the connection cancels what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from croft.compute.environment import Environment
from croft.compute.worker_messages import BufferPart, DropBuffer
from croft.twins.pipeline_store import PipelineSpec
from croft.wire.codec import Message

# --- from the program ------------------------------------------------------------------------------------------------


class OpenTaskJob(Message, frozen=True, tag=50):
    """A bag of Python tasks. `only` and `never` name peers; `task_s_max` 0: no limit. `needs`: devices. `labels`: words
    that a peer must all have. `retries`: how often a task that failed runs again before that counts. `priority`: higher
    goes before other jobs of the same twin.

    One that `is_durable` is kept on disk: its program adds all tasks, says `SealJob`, and may go. Copies are held by
    `delegates`, peers by id, or, if none is named, by as many as `delegates_wanted`; None: as the settings say.
    """

    label: str
    python: str
    only: list[str]
    never: list[str]
    memory_bytes: int = 0
    task_s_max: float = 0.0
    is_durable: bool = False
    delegates: tuple[str, ...] = ()
    delegates_wanted: int | None = None
    needs: Sequence[str] = ()
    verify: str = ""
    """As `croft.compute.verification.parse_check` reads it."""
    labels: Sequence[str] = ()
    retries: int = 0
    cpus: int = 1
    priority: int = 0
    environment: Environment | None = None
    """Its wheels are in this peer's cache already."""
    deterministic: bool | None = None
    """Whether the same call gives the same result, and does no harm twice; None: nobody knows."""
    near: Sequence[bytes] = ()
    """Stored files and folders: peers that hold most of them are asked first."""


class DefineFunction(Message, frozen=True, tag=51):
    """A function by the digest of its cloudpickle bytes; before the first task that uses it."""

    digest: bytes
    pickled: bytes


class SubmitTasks(Message, frozen=True, tag=52):
    """Tasks numbered `first`, `first + 1`, …; each argument is a pickle of (args, kwargs)."""

    function: bytes
    first: int
    arguments: list[bytes]
    buffers: list[list[bytes]] = msgspec.field(default_factory=list)
    """As in `croft.compute.worker_messages.RunChunk`."""
    stays: bool = False
    """What they return may stay at its lender, until it is wanted: then the outcome is KEPT."""


class CancelTasks(Message, frozen=True, tag=53):
    """Nobody waits for these any more."""

    tasks: list[int]


class OpenCommandJob(Message, frozen=True, tag=54):
    """A command. `inputs`: (absolute path here, name there); `outputs`: (name there, absolute path here).

    `stdin`: the name there of the input that is its standard input; "" for none. `wait_s`: how long to wait in line
    where every peer is full. `needs`: devices, one of each. `priority`: before which of one's own it waits.
    `stored`: (name of a stored file or folder, name there).
    `packages`: what Python finds there besides. `is_wasm`, `fuel`: a WebAssembly program, and what it may burn.
    """

    argv: list[str]
    environment: dict[str, str]
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    only: list[str]
    never: list[str]
    cpus: float = 1.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    time_s_max: float = 0.0
    stdin: str = ""
    wait_s: float = inf
    needs: Sequence[str] = ()
    priority: int = 0
    circle: str = ""
    """A circle that this program has opened, whose member `member` the command is."""
    member: str = ""
    stored: Sequence[tuple[bytes, str]] = ()
    packages: Environment | None = None
    python: str = ""
    """Major.minor that the peer's interpreter must have; "" for any."""
    is_wasm: bool = False
    fuel: int = 0
    label: str = ""
    """What to call the job; "": as the command."""


class OpenForward(Message, frozen=True, tag=55):
    """A local port that leads to a service of a peer, for as long as this connection lasts. `port` 0: any free one."""

    peer: str
    service: str
    protocol: str
    port: int = 0


class OpenProxy(Message, frozen=True, tag=56):
    """A local SOCKS port that leads to all exposed services, for as long as this connection lasts."""

    port: int = 0


class OpenPipe(Message, frozen=True, tag=57):
    """One connection to a service of a peer. After `PipeOpened` this connection carries its bytes as they are."""

    peer: str
    service: str


class OpenCircle(Message, frozen=True, tag=58):
    """A circle of this program and its commands, for as long as this connection lasts. Answered by `CircleOpened`."""


class OpenToMember(Message, frozen=True, tag=59):
    """A stream to a member of a circle of this program. After `PipeOpened` this connection carries its bytes."""

    circle: str
    member: str


class TakeStream(Message, frozen=True, tag=152):
    """Takes the stream that `StreamWaits` told of. After `PipeOpened` this connection carries its bytes."""

    circle: str
    number: int


class KeptBuffer(Message, frozen=True, tag=153):
    """A buffer that a peer keeps, since a task has made it; before the first task that uses it, and when it moves."""

    digest: bytes
    size: int
    peer: str
    token: bytes


class StoredBuffer(Message, frozen=True, tag=157):
    """A buffer that is a stored file, which `digest` only names; before the first task that uses it.

    `number`: which version; 0: the newest.
    """

    digest: bytes
    name: bytes
    size: int
    number: int = 0


class WantValues(Message, frozen=True, tag=154):
    """The program waits for the values of these tasks. One that is kept comes as `TaskResultPart`… and as an outcome;
    if it is lost, as an outcome LOST."""

    tasks: list[int]


class ReleaseValues(Message, frozen=True, tag=155):
    """Nobody needs these tasks' values where they are kept; the tasks may yet run again."""

    tasks: list[int]


class RunTaskAgain(Message, frozen=True, tag=156):
    """A task whose value was lost, or what it needs, is to run once more. `buffers`: as in `SubmitTasks`, of it."""

    task: int
    buffers: list[bytes] = msgspec.field(default_factory=list)
    stays: bool = False


class SealJob(Message, frozen=True, tag=150):
    """These were all tasks of a durable job. Answered by `JobSealed` once they are on disk."""


class OpenResults(Message, frozen=True, tag=151):
    """Asks what came of a durable job's tasks, as it comes: `TaskOutcomes`… and `ResultsEnded` once it is over.

    `job` is its id. In the order of the tasks from task `after` on, or, else, of their recording.
    """

    job: str
    is_in_order: bool = False
    after: int = 0


class OpenCalls(Message, frozen=True, tag=190):
    """Calls of capabilities. What follows, both ways, are the messages of `croft.twins.call_messages`."""


class OpenPut(Message, frozen=True, tag=170):
    """Puts files: (path here, name there), folders with all that is in them. `piped`: the name of what follows as
    `PieceOfFile`, ended by an empty one; empty: nothing follows.

    `on`, `never`: ids of peers. `keep`: the layout, as `croft.storage.placement.parse_layout` reads it; empty: by the
    number of peers. `for_s`: after how long they are to go; 0: never.
    """

    files: list[tuple[bytes, bytes]]
    piped: bytes = b""
    on: Sequence[str] = ()
    never: Sequence[str] = ()
    keep: str = ""
    for_s: float = 0.0


class PieceOfFile(Message, frozen=True, tag=171):
    """The next bytes of what is piped, up to PIECE_BYTES_MAX; none: these were all."""

    data: bytes


class OpenGet(Message, frozen=True, tag=172):
    """Reads a file, or all files below a name, into `place`; empty: one file, which comes back as `PieceRead`.

    `number`: which version; 0: the newest; `device`: put by which device, where several have one number. `snapshot`:
    as the files were then; empty: as they are. `replaces`: files that are there already. `offset`, `size`: of one file
    that comes back; a size of -1: to its end.
    """

    name: bytes
    place: bytes = b""
    number: int = 0
    replaces: bool = False
    offset: int = 0
    size: int = -1
    device: str = ""
    snapshot: str = ""


class OpenPipeline(Message, frozen=True, tag=191):
    """A pipeline; its items follow as `PipelineInput`."""

    spec: PipelineSpec


class PipelineInput(Message, frozen=True, tag=192):
    """A part of an item in the safe codec, or with `is_end` no more items."""

    data: bytes = b""
    is_last: bool = True
    is_end: bool = False


class OpenPipelineResults(Message, frozen=True, tag=193):
    """What became of the items of a pipeline, as it comes or in order."""

    name: str
    is_in_order: bool = True


class OpenBackupRun(Message, frozen=True, tag=173):
    """Runs a backup; `is_anew`: everything is read and sent. The answer is a `BackupReport`."""

    name: str
    is_anew: bool = False


class OpenBackupRestore(Message, frozen=True, tag=174):
    """Writes what a backup has into a folder; the answer is a `BackupRestored`.

    `number`: of the snapshot; 0: the newest. `inside`: the part of it that is wanted; empty: all of it. `replaces`:
    files that are there already and differ.
    """

    name: str
    into: bytes
    number: int = 0
    inside: bytes = b""
    replaces: bool = False


class OpenBackupVerify(Message, frozen=True, tag=175):
    """Looks whether a backup can be restored; `reads`: by reading all of it. The answer is a `BackupVerified`."""

    name: str
    reads: bool = False


FromProgram = (
    OpenPut
    | OpenPipeline
    | PipelineInput
    | OpenPipelineResults
    | OpenBackupRun
    | OpenBackupRestore
    | OpenBackupVerify
    | OpenCalls
    | PieceOfFile
    | OpenGet
    | OpenTaskJob
    | DefineFunction
    | SubmitTasks
    | CancelTasks
    | OpenCommandJob
    | OpenForward
    | OpenProxy
    | OpenPipe
    | BufferPart
    | DropBuffer
    | KeptBuffer
    | StoredBuffer
    | WantValues
    | ReleaseValues
    | RunTaskAgain
    | SealJob
    | OpenResults
    | OpenCircle
    | OpenToMember
    | TakeStream
)

# --- from the daemon -------------------------------------------------------------------------------------------------


class JobOpened(Message, frozen=True, tag=60):
    """The job has an id now."""

    job: str


class TaskOutcomes(Message, frozen=True, tag=61):
    """Recorded outcomes: (task, `croft.compute.worker_messages.Status`, payload), each task once, and who did them."""

    peer: str
    peer_name: str
    outcomes: list[tuple[int, int, bytes]]


class TaskResultPart(Message, frozen=True, tag=69):
    """The next bytes of a large result; what is left comes as the task's outcome, next."""

    task: int
    data: bytes


class PeerCaught(Message, frozen=True, tag=162):
    """A peer was found to lie. `unchecked`: tasks whose results from it had come before, without a check."""

    peer_name: str
    reason: str
    unchecked: list[int]


class CommandStarted(Message, frozen=True, tag=62):
    """The command runs on this peer."""

    peer: str
    peer_name: str


class CommandOutput(Message, frozen=True, tag=63):
    """What the command printed; `descriptor` is 1 or 2."""

    descriptor: int
    data: bytes


class CommandEnded(Message, frozen=True, tag=64):
    """The command is over and its outputs are here. `missing`: outputs that could not be fetched."""

    exit_code: int
    signal: int
    reason: str
    peer: str
    peer_name: str
    missing: list[str]


class JobFailed(Message, frozen=True, tag=65):
    """The job as a whole failed."""

    code: str
    message: str
    remedy: str = ""


class PortOpened(Message, frozen=True, tag=66):
    """The local port of a tunnel is open."""

    port: int


class PipeOpened(Message, frozen=True, tag=67):
    """From here on, bytes."""


class TunnelProblem(Message, frozen=True, tag=68):
    """One connection through a tunnel failed; the tunnel stays."""

    code: str
    message: str
    remedy: str = ""


class CircleOpened(Message, frozen=True, tag=163):
    """The circle's id, for the commands that are to be in it."""

    circle: str


class StreamWaits(Message, frozen=True, tag=164):
    """A member has opened a stream to this program, which has some seconds to take it."""

    number: int
    sender: str


class JobSealed(Message, frozen=True, tag=160):
    """A durable job has so many tasks, and all are on disk."""

    tasks: int


class ResultsEnded(Message, frozen=True, tag=161):
    """No more outcomes will come: the job has ended or was cancelled."""


class StorageProgress(Message, frozen=True, tag=180):
    """How far a put or a get has come, now and then. `total_bytes` -1: nobody knows."""

    files: int
    done_bytes: int
    total_bytes: int


class PutDone(Message, frozen=True, tag=181):
    """Everything counts. `holders`: how many shares each peer took, by name; `missing`: shares that nobody took.

    `losses`: how many holders may be lost. `stored_bytes`: what all shares take.
    """

    files: int
    size_bytes: int
    stored_bytes: int
    layout: str
    losses: int
    holders: dict[str, int]
    missing: int


class PieceRead(Message, frozen=True, tag=182):
    """The next bytes of a file."""

    data: bytes


class GetDone(Message, frozen=True, tag=183):
    """Everything is read. `faults`: what holders were caught at meanwhile."""

    files: int
    size_bytes: int
    faults: list[str]


class PipelineTaken(Message, frozen=True, tag=194):
    """The id of a pipeline, and how many items it has; sent when it is made, and when it takes no more."""

    pipeline: str
    items: int


class PipelineResult(Message, frozen=True, tag=195):
    """A part of an item's result."""

    item: int
    data: bytes
    is_last: bool


class PipelineFailure(Message, frozen=True, tag=196):
    """An item did not get through. `stage`: where; empty: its result is not there any more."""

    item: int
    stage: str
    why: str


class PipelineOver(Message, frozen=True, tag=197):
    """No more items come to an end."""

    state: str


class BackupDone(Message, frozen=True, tag=184):
    """What was asked of a backup is done. `answer`: the JSON of what `croft.control.backup_schema` says."""

    answer: bytes


FromDaemon = (
    BackupDone
    | PipelineTaken
    | PipelineResult
    | PipelineFailure
    | PipelineOver
    | CircleOpened
    | StreamWaits
    | StorageProgress
    | PutDone
    | PieceRead
    | GetDone
    | JobSealed
    | ResultsEnded
    | PortOpened
    | PipeOpened
    | TunnelProblem
    | JobOpened
    | TaskOutcomes
    | TaskResultPart
    | PeerCaught
    | CommandStarted
    | CommandOutput
    | CommandEnded
    | JobFailed
)
