"""What a journal keeps of a job as bytes. Only add: new fields need a default."""

from __future__ import annotations

from collections.abc import Sequence

from croft.compute.environment import Environment
from croft.compute.messages import Declined
from croft.wire.codec import Message


class JobSpec(Message, frozen=True):
    """How the tasks of a job are to run. `only` and `never` name peers; `task_s_max` and `memory_bytes` 0: no limit."""

    label: str
    python: str
    only: list[str]
    never: list[str]
    memory_bytes: int = 0
    task_s_max: float = 0.0
    needs: Sequence[str] = ()
    verify: str = ""
    """As `croft.compute.verification.parse_check` reads it."""
    labels: Sequence[str] = ()
    retries: int = 0
    cpus: int = 1
    priority: int = 0
    environment: Environment | None = None
    deterministic: bool | None = None


# --- between the holders of a job: `journal/1` streams ---------------------------------------------------------------

JOURNAL_PURPOSE = "journal/1"
CALL_MAY_HOLD = "job.may_hold"
CALL_FIND_JOB = "job.find"
CALL_END_JOB = "job.end"
RANGES_MAX = 20_000


class MayHold(Message, frozen=True):
    """Asks whether a peer would keep a copy of a job of the sender's; any answer but a refusal is yes."""

    label: str


class FindJob(Message, frozen=True):
    """Asks for a job of the sender's own person, by id, beginning of the id, or label; answered by `FoundJob`."""

    name: str


class FoundJob(Message, frozen=True):
    """How a job stands at a holder."""

    job: str
    label: str
    submitter: str
    carrier: str
    delegates: list[str]
    created_at: float
    ended_at: float | None
    state: str
    tasks: int
    done: int
    failed: int
    done_by: dict[str, int]


class EndJob(Message, frozen=True):
    """Asks a holder to cancel a job of the sender's own person, or to forget it; answered by `FoundJob`."""

    job: str
    forget: bool = False


class HoldJob(Message, frozen=True, tag=170):
    """Opens a stream between two holders of a job. `recorded`: tasks whose outcomes the sender has, as [from, to)."""

    job: str
    spec: JobSpec
    twin: str
    submitter: str
    delegates: list[str]
    created_at: float
    epoch: int
    carrier: str
    recorded: list[tuple[int, int]]


class ReadJob(Message, frozen=True, tag=171):
    """Opens a stream that reads a job's outcomes: `HeldOutcomes`… and `JobOver`. See `OpenResults`."""

    job: str
    is_in_order: bool
    after: int


class Holding(Message, frozen=True, tag=172):
    """The answer to `HoldJob`: what is here. `tasks` are the first ones; `is_full`: there are no more."""

    epoch: int
    carrier: str
    tasks: int
    is_full: bool
    recorded: list[tuple[int, int]]


class HeldFunction(Message, frozen=True, tag=173):
    """A function of the job; before its first task."""

    digest: bytes
    pickled: bytes


class HeldTasks(Message, frozen=True, tag=174):
    """Tasks numbered from `first` on."""

    function: bytes
    first: int
    arguments: list[bytes]


class HeldAll(Message, frozen=True, tag=175):
    """These were all tasks. Answered by `Kept`."""


class Kept(Message, frozen=True, tag=176):
    """All tasks are on disk here."""


class HeldOutcomes(Message, frozen=True, tag=177):
    """What came of some tasks, and who did them."""

    peer: str
    outcomes: list[tuple[int, int, bytes]]


class Claim(Message, frozen=True, tag=178):
    """Somebody carries the job on from now."""

    epoch: int
    carrier: str


class JobOver(Message, frozen=True, tag=179):
    """No more outcomes will come; `state` is ended or cancelled."""

    state: str


class Release(Message, frozen=True, tag=180):
    """The submitter has everything: the other's copy is not needed any more."""


class Level(Message, frozen=True, tag=181):
    """All outcomes that the sender had when the stream began, and the other lacked, are sent."""


class HeldResultPart(Message, frozen=True, tag=182):
    """The next bytes of a large result; what is left comes as the task's outcome, next."""

    task: int
    data: bytes


BetweenHolders = (
    HoldJob
    | ReadJob
    | Holding
    | HeldFunction
    | HeldTasks
    | HeldAll
    | Kept
    | HeldOutcomes
    | Claim
    | JobOver
    | Release
    | Level
    | HeldResultPart
    | Declined
)
