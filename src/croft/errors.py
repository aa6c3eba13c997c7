"""The exception tree: everything that Croft raises on purpose.

Three kinds of failure exist. *Operational* ones (`CroftError`) reach the user with a code, an exit code and a
remedy. A *peer's fault* (`PeerMisbehaved`) drops and scores that peer. *Bugs* are assertions and are never caught.
"""

from __future__ import annotations


class CroftError(Exception):
    """Something that the user can understand and act on.

    Attributes:
        message: what failed, naming the peer and the step.
        remedy: what to do about it; may be empty.
        code: stable machine-readable word, also used on the wire.
        exit_code: what the command line returns.
    """

    code = "failed"
    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.remedy}" if self.remedy else self.message


class Failed(CroftError):
    """An operation that ended badly for a reason that no other class describes."""

    code = "failed"


class Usage(CroftError):
    """The request itself is wrong: an argument, a setting, a value."""

    code = "usage"
    exit_code = 2


class NotFound(CroftError):
    """The thing asked for does not exist, here or at any peer asked."""

    code = "not_found"
    exit_code = 3


class BadArgument(Usage):
    """An argument of a capability does not fit its signature. Nothing has run.

    Attributes:
        field: which one.
    """

    code = "bad_argument"

    def __init__(self, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


class ValueLost(CroftError):
    """Something that was made before and kept by a peer is not kept any more; it can be made again."""

    code = "value_lost"


class Unreachable(CroftError):
    """A peer, or the local daemon, cannot be reached."""

    code = "unreachable"
    exit_code = 4


class Refused(CroftError):
    """A peer or the local daemon declined: no grant, no room, an expired or used invitation."""

    code = "refused"
    exit_code = 5


class Busy(Refused):
    """Declined for now: a queue or limit is full. Trying again later can help."""

    code = "busy"


class Full(Busy):
    """Declined for now: others hold what it needs. The message says what is taken, and until when."""

    code = "full"


class TimedOut(CroftError):
    """A deadline passed before the answer came."""

    code = "timed_out"


class Cancelled(CroftError):
    """The caller or the user cancelled the work."""

    code = "cancelled"


class CodecError(CroftError):
    """A value cannot be carried by the safe codec, or bytes are not a valid encoding of one."""

    code = "codec"


class Unserialisable(CroftError):
    """A function or an argument cannot be sent to a peer."""

    code = "unserialisable"


class TooLarge(CroftError):
    """An argument, a result or a file exceeds a stated limit."""

    code = "too_large"


class TaskFailed(CroftError):
    """A task raised, and its exception's class is not known here. `remote_traceback` holds the text.

    Attributes:
        type_name: qualified name of the remote exception's class.
        remote_traceback: the traceback as the peer printed it.
    """

    code = "task_failed"

    def __init__(self, message: str, *, remedy: str = "", type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.type_name = type_name
        self.remote_traceback = remote_traceback


class CapabilityFailed(CroftError):
    """A capability raised, died, or returned what its signature does not promise.

    Attributes:
        provider: the peer that ran it, by name.
        type_name: the class of the remote exception, if it raised one. remote_traceback: as the provider printed it.
        may_have_run: whether it may have had an effect there.
    """

    code = "capability_failed"

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        provider: str = "",
        type_name: str = "",
        remote_traceback: str = "",
        may_have_run: bool = True,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.provider = provider
        self.type_name = type_name
        self.remote_traceback = remote_traceback
        self.may_have_run = may_have_run


class CallLost(CapabilityFailed):
    """The provider, or its process, was lost while it served a call: the call may have run, and it may not."""

    code = "call_lost"


class TaskDied(CroftError):
    """A task's process ended without an answer: a signal, an exit, no memory left."""

    code = "task_died"


class TaskTimedOut(TaskDied):
    """A task ran longer than its time limit and was killed."""

    code = "task_timed_out"


class TaskDisputed(CroftError):
    """A task whose result was to be verified, and of which no majority of peers says the same."""

    code = "task_disputed"


class ConnectionLost(Exception):
    """The link to a peer ended while something waited on it. Internal: callers turn it into `Unreachable`."""


class PeerMisbehaved(Exception):
    """A peer broke the protocol: it is dropped, and the reason logged with its name.

    Attributes:
        step: which part of which protocol the peer was in.
    """

    def __init__(self, message: str, *, step: str) -> None:
        super().__init__(f"{step}: {message}")
        self.step = step


def by_code(code: str, message: str, remedy: str = "") -> CroftError:
    """Rebuilds the operational error that a `Failure` on the wire or in the local API describes.

    An unknown code, from a newer peer, becomes a plain `CroftError` that keeps the code.
    """
    pending = CroftError.__subclasses__()
    while pending:
        kind = pending.pop()
        if kind.__dict__.get("code") == code:
            return kind(message, remedy=remedy)
        pending.extend(kind.__subclasses__())
    error = CroftError(message, remedy=remedy)
    error.code = code
    return error
