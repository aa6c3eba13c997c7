"""Runs a box's program as an ordinary process (grade D): for an owner who allows it, for code that they trust.

Resource limits, the watchdog and the clearing away of what it leaves still hold; files, network and other processes
of the peer's user are open to it.
"""

from __future__ import annotations

from croft.adapters.landlock_sandbox import LaunchedSandbox


class PlainProcessSandbox(LaunchedSandbox):
    """Boxes that confine nothing."""

    confines = False
