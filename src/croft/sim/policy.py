"""What the owner of a simulated machine allows; fulfils `croft.compute.lender.Policy`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from croft.compute.messages import OpenCommand
from croft.errors import CroftError
from croft.model.ids import TwinId
from croft.ports import BoxSpec
from croft.sim.sandbox import PYTHON

BOX_MEMORY_BYTES = 512 << 20


@dataclass
class SimulatedPolicy:
    """Takes everybody's work.

    Attributes:
        slots: processors that a box gets.
        version: of Python in the boxes.
        refusal: raised for every consumer while set.
    """

    slots: int
    version: str = PYTHON
    refusal: CroftError | None = None
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def python(self) -> str:
        return self.version

    def check(self, twin: TwinId) -> None:
        if self.refusal is not None:
            raise self.refusal

    def task_box(self, twin: TwinId, memory_bytes: int) -> BoxSpec:
        return self._box("tasks", memory_bytes)

    def command_box(self, opening: OpenCommand) -> BoxSpec:
        return self._box("command", opening.memory_bytes)

    def discard(self, spec: BoxSpec) -> None:
        """Simulated boxes have no folder."""

    def _box(self, kind: str, memory_bytes: int) -> BoxSpec:
        return BoxSpec(
            name=f"{kind}-{next(self._numbers)}",
            argv=("worker", "{fd}"),
            cpus=max(1, self.slots),
            memory_bytes=memory_bytes or BOX_MEMORY_BYTES,
        )
