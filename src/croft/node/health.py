"""What is wrong with this peer, as typed warnings for terminal and web alike."""

from __future__ import annotations

from croft.control.quantities import show_duration
from croft.control.schema import HealthWarning, Severity
from croft.overlay.records import CLOCK_AHEAD_S_MAX


class Health:
    """The warnings that hold now; a code stands once."""

    def __init__(self) -> None:
        self._warnings: dict[str, HealthWarning] = {}

    def warn(self, code: str, title: str, *, severity: Severity = Severity.WARNING, remedy: str = "") -> None:
        """Raises a warning, or renews it."""
        self._warnings[code] = HealthWarning(code=code, title=title, severity=severity, remedy=remedy)

    def warn_of_key_used_elsewhere(self, addresses: list[str]) -> None:
        """Two machines run with one device key: members cannot tell them apart."""
        self.warn(
            "identity.used_elsewhere",
            f"Another machine uses this device's key, at {', '.join(addresses) or 'an unknown address'}.",
            severity=Severity.CRITICAL,
            remedy="Stop one of them, remove its `keys/device` file, and let it join anew.",
        )

    def warn_of_broken_audit(self, what: str) -> None:
        """The log of what others did here is not as this peer left it."""
        self.warn(
            "audit.broken",
            f"The audit log was changed by somebody else: {what}.",
            severity=Severity.CRITICAL,
            remedy="See all of it: `croft audit --verify`. Whoever did it can write to this machine's disk.",
        )

    def compare_clock(self, ahead_s: float) -> None:
        """Warns if the clocks of the peers here are that far before this machine's, or clears the warning."""
        if abs(ahead_s) <= CLOCK_AHEAD_S_MAX:
            self.clear("clock.wrong")
            return
        self.warn(
            "clock.wrong",
            f"This machine's clock is about {show_duration(abs(ahead_s))} {'behind' if ahead_s > 0 else 'before'} "
            "those of the other peers; what one side says looks expired or not yet valid to the other.",
            severity=Severity.CRITICAL,
            remedy="Set it: `timedatectl set-ntp true`, or `date --set`; then `croft down` and `croft up`.",
        )

    def clear(self, code: str) -> None:
        """The matter is settled."""
        self._warnings.pop(code, None)

    def warnings(self) -> list[HealthWarning]:
        """All of them, worst first."""
        order = [Severity.CRITICAL, Severity.WARNING, Severity.INFO]
        return sorted(self._warnings.values(), key=lambda warning: (order.index(warning.severity), warning.code))
