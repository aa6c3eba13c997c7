"""Wire messages of the `tasks/1` and `command/1` streams. Only add: new fields need a default, tags are for ever.

A stream begins with an opening by the consumer and an answer by the lender. After `Opened`, the messages of
`croft.compute.worker_messages` travel both ways: the lender passes them on to and from the consumer's box.
"""

from __future__ import annotations

from croft.wire.codec import Message

TASKS_PURPOSE = "tasks/1"
COMMAND_PURPOSE = "command/1"


class OpenTasks(Message, frozen=True, tag=30):
    """Asks for slots to run Python tasks. `memory_bytes` 0: whatever the lender gives by default."""

    python: str
    memory_bytes: int = 0


class OpenCommand(Message, frozen=True, tag=31):
    """Asks for a slot and a folder to run one command."""

    cpus: float = 1.0
    memory_bytes: int = 0
    disk_bytes: int = 0


class Opened(Message, frozen=True, tag=32):
    """Granted. `functions`: digests of the consumer's functions that the lender still has.

    `buffer_bytes_max`: how much of large arguments may be there at once; 0 of a peer that takes none.
    """

    slots: int
    functions: list[bytes]
    buffer_bytes_max: int = 0


class Declined(Message, frozen=True, tag=33):
    """Not granted; `code` as in `croft.errors`."""

    code: str
    message: str
    remedy: str = ""


Reply = Opened | Declined
