"""What a journal keeps of a job as bytes. Only add: new fields need a default."""

from __future__ import annotations

from croft.wire.codec import Message


class JobSpec(Message, frozen=True):
    """How the tasks of a job are to run. `only` and `never` name peers; `task_s_max` and `memory_bytes` 0: no limit."""

    label: str
    python: str
    only: list[str]
    never: list[str]
    memory_bytes: int = 0
    task_s_max: float = 0.0
    verify: str = ""
    """As `croft.compute.verification.parse_check` reads it."""
