"""Every box that is open here, so that the owner's own work comes first: they can be stopped, and share what is lent.

Together they get at most `cpus_max` processors, divided by what each was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from croft.errors import ConnectionLost

if TYPE_CHECKING:
    from croft.ports import Box, BoxSpec, Sandbox


class LiveBoxes:
    """The open boxes of one peer. `cpus_max` None: what they were promised."""

    def __init__(self, sandbox: Sandbox, cpus_max: float | None = None) -> None:
        self._sandbox = sandbox
        self._cpus_max = cpus_max
        self._boxes: dict[Box, float] = {}
        self._specs: dict[Box, BoxSpec] = {}
        self._closed_cpu_s = 0.0
        self._turn = asyncio.Lock()
        self.is_held = False

    async def open(self, spec: BoxSpec) -> Box:
        """One more box, to be closed by `close`. Raises Failed."""
        box = await self._sandbox.open(spec)
        self._boxes[box] = spec.cpus
        self._specs[box] = spec
        await self._settle()
        return box

    def closed(self, box: Box) -> None:
        """A box has been closed."""
        self._specs.pop(box, None)
        if self._boxes.pop(box, None) is not None:
            self._closed_cpu_s += box.usage().cpu_s

    def read_only_paths(self) -> set[str]:
        """What of this machine the open boxes see."""
        return {path for spec in self._specs.values() for path in spec.read_only}

    def cpu_s(self) -> float:
        """What all boxes have used so far."""
        return self._closed_cpu_s + sum(box.usage().cpu_s for box in self._boxes)

    async def hold(self, is_held: bool) -> None:
        """Stops all boxes where they are, or lets them go on."""
        self.is_held = is_held
        await self._settle()

    async def _settle(self) -> None:
        # One at a time: whoever comes last sees to it that every box is as it should be by then.
        async with self._turn:
            promised = sum(self._boxes.values())
            part = 1.0 if self._cpus_max is None or not promised else min(1.0, self._cpus_max / promised)
            for box, cpus in list(self._boxes.items()):
                with contextlib.suppress(ConnectionLost):
                    await box.hold(self.is_held)
                    if self._cpus_max is not None:
                        await box.limit(cpus * part)
