"""What is wrong with this peer, as typed warnings for terminal and web alike."""

from __future__ import annotations

from croft.control.schema import HealthWarning, Severity


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

    def clear(self, code: str) -> None:
        """The matter is settled."""
        self._warnings.pop(code, None)

    def warnings(self) -> list[HealthWarning]:
        """All of them, worst first."""
        order = [Severity.CRITICAL, Severity.WARNING, Severity.INFO]
        return sorted(self._warnings.values(), key=lambda warning: (order.index(warning.severity), warning.code))
