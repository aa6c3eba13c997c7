"""Holds foreign WebAssembly where nothing holds native code (grade D): wasmtime confines it, in a process of its own.

Boxes for native code are not opened. What runs in the others is a worker of ours, which starts nothing but
`croft.compute.wasm_runner`; resource limits, the watchdog and the clearing away of what is left hold as everywhere.
"""

from __future__ import annotations

from croft.adapters.box_process import BoxProcess
from croft.adapters.plain_process import PlainProcessSandbox
from croft.errors import Refused
from croft.ports import BoxSpec


class WasmSandbox(PlainProcessSandbox):
    """Boxes for WebAssembly only."""

    async def open(self, spec: BoxSpec) -> BoxProcess:
        """Raises Refused for a box of native code."""
        if not spec.is_wasm:
            raise Refused(
                f"box {spec.name} is not opened: this machine cannot hold foreign native code",
                remedy=self.isolation().reason,
            )
        return await super().open(spec)
