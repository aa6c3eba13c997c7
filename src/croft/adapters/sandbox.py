"""Decides which sandbox this machine gets: the best that works here."""

from __future__ import annotations

from croft.adapters.bubblewrap_sandbox import BubblewrapSandbox
from croft.adapters.isolation_probe import isolation_of, probe
from croft.adapters.landlock_sandbox import LandlockSandbox
from croft.adapters.plain_process import PlainProcessSandbox
from croft.adapters.wasm_sandbox import WasmSandbox
from croft.model.isolation import Grade
from croft.ports import Sandbox


def best_sandbox(*, allows_unconfined: bool = False) -> Sandbox:
    """The best sandbox that works here, found by trying; blocks for a few hundredths of a second.

    Where nothing holds foreign native code, boxes are ordinary processes: for any code if the owner allows that, else
    for WebAssembly alone.
    """
    findings = probe()
    isolation = isolation_of(findings)
    match isolation.grade:
        case Grade.A | Grade.B:
            return BubblewrapSandbox(isolation, findings.groups)
        case Grade.C:
            return LandlockSandbox(isolation, findings.groups)
        case Grade.D:
            if allows_unconfined:
                return PlainProcessSandbox(isolation, findings.groups)
            return WasmSandbox(isolation, findings.groups)
