"""Decides which sandbox this machine gets: the best that works here."""

from __future__ import annotations

from croft.adapters.bubblewrap_sandbox import BubblewrapSandbox
from croft.adapters.isolation_probe import isolation_of, probe
from croft.adapters.landlock_sandbox import LandlockSandbox
from croft.adapters.plain_process import PlainProcessSandbox
from croft.errors import Refused
from croft.model.isolation import Grade, Isolation
from croft.ports import Box, BoxSpec, Sandbox


class ClosedSandbox:
    """Opens no box: this machine cannot hold foreign code, and its owner has not allowed to run it unconfined."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation

    def isolation(self) -> Isolation:
        """Grade D, and why it is no better."""
        return self._isolation

    async def open(self, spec: BoxSpec) -> Box:
        """Raises Refused."""
        raise Refused(
            f"box {spec.name} is not opened: this machine cannot hold foreign code",
            remedy=self._isolation.reason,
        )


def best_sandbox(*, allows_unconfined: bool = False) -> Sandbox:
    """The best sandbox that works here, found by trying; blocks for a few hundredths of a second.

    Where nothing holds foreign code, boxes are ordinary processes if the owner allows that, else none is opened.
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
            return ClosedSandbox(isolation)
