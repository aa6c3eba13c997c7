"""Messages on the work socket, between this machine's programs and their daemon. One connection is one job.

The first frame from the program opens the job; closing the connection cancels what is left of it.
"""

from __future__ import annotations

from croft.wire.codec import Message

# --- from the program ------------------------------------------------------------------------------------------------


class OpenTaskJob(Message, frozen=True, tag=50):
    """A bag of Python tasks. `only` and `never` name peers; `task_s_max` 0: no limit."""

    label: str
    python: str
    only: list[str]
    never: list[str]
    memory_bytes: int = 0
    task_s_max: float = 0.0


class DefineFunction(Message, frozen=True, tag=51):
    """A function by the digest of its cloudpickle bytes; before the first task that uses it."""

    digest: bytes
    pickled: bytes


class SubmitTasks(Message, frozen=True, tag=52):
    """Tasks numbered `first`, `first + 1`, …; each argument is a pickle of (args, kwargs)."""

    function: bytes
    first: int
    arguments: list[bytes]


class CancelTasks(Message, frozen=True, tag=53):
    """Nobody waits for these any more."""

    tasks: list[int]


class OpenCommandJob(Message, frozen=True, tag=54):
    """A command. `inputs`: (absolute path here, name there); `outputs`: (name there, absolute path here)."""

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


FromProgram = OpenTaskJob | DefineFunction | SubmitTasks | CancelTasks | OpenCommandJob

# --- from the daemon -------------------------------------------------------------------------------------------------


class JobOpened(Message, frozen=True, tag=60):
    """The job has an id now."""

    job: str


class TaskOutcomes(Message, frozen=True, tag=61):
    """Recorded outcomes: (task, `croft.compute.worker_messages.Status`, payload), each task once, and who did them."""

    peer: str
    peer_name: str
    outcomes: list[tuple[int, int, bytes]]


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


FromDaemon = JobOpened | TaskOutcomes | CommandStarted | CommandOutput | CommandEnded | JobFailed
