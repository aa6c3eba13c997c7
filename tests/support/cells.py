"""Boxes that are kept open for many attempts of the code inside to get out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from croft.adapters.box_process import ProcessSandbox
from support.boxes import open_peer

SECRET = "a-secret-of-the-peer"
SECRET_VARIABLE = "CROFT_TEST_SECRET"


class Cell:
    """A box kept open for many attempts, and the loop that it lives on."""

    def __init__(self, kind: str, sandbox: ProcessSandbox, work_dir: Path) -> None:
        self.kind = kind
        self.sandbox = sandbox
        self.work_dir = work_dir
        self._runner = asyncio.Runner()
        self._opened = open_peer(sandbox, work_dir)
        self.peer = self._runner.run(self._opened.__aenter__())

    def attempt(self, function: Callable[..., object], *args: object) -> object:
        """What the code in the box achieved; asserts that its worker goes on working."""
        achieved = self._runner.run(self.peer.call(function, *args))
        assert self._runner.run(self.peer.call(lambda: "alive")) == "alive"
        return achieved

    def run(self, work: Awaitable[object]) -> object:
        """Awaits `work` on the cell's loop."""

        async def wait() -> object:
            return await work

        return self._runner.run(wait())

    def close(self) -> None:
        """Ends the box and the loop."""
        self._runner.run(self._opened.__aexit__(None, None, None))
        self._runner.close()
