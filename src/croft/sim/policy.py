"""What the owner of a simulated machine allows; fulfils `croft.compute.lending_terms.Policy`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from croft.compute.messages import OpenCommand, OpenTasks
from croft.errors import CroftError
from croft.model.amounts import BOX, CPU, MEMORY, Amounts
from croft.model.ids import TwinId
from croft.ports import BoxSpec
from croft.sim.sandbox import BUILDER, PYTHON

BOX_MEMORY_BYTES = 256 << 20


@dataclass
class SimulatedPolicy:
    """Takes everybody's work.

    Attributes:
        version: of Python in the boxes.
        refusal: raised for every consumer while set.
        tags: what wheels it takes.
    """

    version: str = PYTHON
    refusal: CroftError | None = None
    tags: Sequence[str] = ("py3-none-any",)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def python(self) -> str:
        return self.version

    def check(self, twin: TwinId, *, is_wasm: bool = False) -> None:
        if self.refusal is not None:
            raise self.refusal

    def task_wants(self, opening: OpenTasks, most: Amounts, room: Amounts) -> Amounts:
        needs = dict.fromkeys(opening.needs, 1)
        return Amounts.of({BOX: 1, CPU: opening.cpus, MEMORY: opening.memory_bytes or BOX_MEMORY_BYTES, **needs})

    def command_wants(self, opening: OpenCommand, most: Amounts, room: Amounts) -> Amounts:
        memory, cpus = opening.memory_bytes or BOX_MEMORY_BYTES, max(1, min(round(opening.cpus), most[CPU]))
        return Amounts.of({BOX: 1, CPU: cpus, MEMORY: memory, **dict.fromkeys(opening.needs, 1)})

    def task_box(
        self, twin: TwinId, amounts: Amounts, slots: int, devices: Mapping[str, str], environment: str = ""
    ) -> BoxSpec:
        return self._box("tasks", amounts, slots)

    def command_box(self, amounts: Amounts, cpus: float, devices: Mapping[str, str], environment: str = "") -> BoxSpec:
        return self._box("command", amounts, amounts[CPU])

    def wheel_tags(self) -> Sequence[str]:
        return self.tags

    def build_box(self, wheels: Path, arguments: Sequence[str], bytes_max: int) -> BoxSpec:
        return BoxSpec(name=f"build-{next(self._numbers)}", argv=(BUILDER, "{fd}"), work_dir=Path("/simulated"))

    def discard(self, spec: BoxSpec) -> None:
        """Simulated boxes have no folder."""

    def _box(self, kind: str, amounts: Amounts, slots: int) -> BoxSpec:
        return BoxSpec(
            name=f"{kind}-{next(self._numbers)}",
            argv=("worker", "{fd}"),
            cpus=max(1, slots),
            memory_bytes=amounts[MEMORY],
        )
