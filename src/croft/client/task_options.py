"""How the tasks of one job are to run, with everything that its program names looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from croft.client.serialise import PYTHON
from croft.client.task import Wants
from croft.compute.environment import Environment
from croft.control.work_messages import OpenTaskJob


@dataclass(frozen=True, slots=True)
class Options:
    """How a job's tasks are to run. `on` and `avoid` hold peer ids; `time_s` 0: no limit."""

    label: str = ""
    on: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    memory_bytes: int = 0
    time_s: float = 0.0
    needs: tuple[str, ...] = ()
    verify: str = ""
    labels: tuple[str, ...] = ()
    retries: int = 0
    cpus: int = 1
    priority: int = 0
    environment: Environment | None = None
    logs: bool = False
    deterministic: bool | None = None
    near: tuple[bytes, ...] = ()

    @classmethod
    def of(
        cls,
        label: str,
        on: tuple[str, ...],
        avoid: tuple[str, ...],
        wants: Wants,
        environment: Environment | None = None,
    ) -> Self:
        """What is wanted of a function, with the peers that it names looked up."""
        return cls(
            label,
            on,
            avoid,
            wants.memory_bytes,
            wants.time_s,
            wants.needs,
            wants.verify,
            wants.labels,
            wants.retries,
            wants.cpus,
            wants.priority,
            environment,
            wants.logs,
            wants.deterministic,
            tuple(name.encode() for name in wants.near),
        )

    @property
    def may_stay(self) -> bool:
        """Whether values may stay elsewhere: none that is verified, comes with a log, or could not be made again."""
        return not self.verify and not self.logs and self.deterministic is not False

    def opening(self) -> OpenTaskJob:
        """The message that opens such a job."""
        return OpenTaskJob(
            self.label,
            PYTHON,
            list(self.on),
            list(self.avoid),
            self.memory_bytes,
            self.time_s,
            needs=self.needs,
            verify=self.verify,
            labels=self.labels,
            retries=self.retries,
            cpus=self.cpus,
            priority=self.priority,
            environment=self.environment,
            deterministic=self.deterministic,
            near=self.near,
        )
