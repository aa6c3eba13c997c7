"""Finds out how well this machine can hold foreign code, by starting real boxes; what files claim is not believed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from croft.adapters import bubblewrap_sandbox
from croft.adapters.box_process import ProcessSandbox
from croft.adapters.bubblewrap_sandbox import BubblewrapSandbox
from croft.adapters.cgroup import ControlGroups, find_control_groups
from croft.adapters.landlock import SIGNAL_SCOPE_VERSION, landlock_version
from croft.adapters.landlock_sandbox import LandlockSandbox
from croft.adapters.seccomp import compile_filter
from croft.model.isolation import Grade, Isolation
from croft.ports import BoxSpec

PROBE_PROGRAM = ("/usr/bin/env", "true")
PROBE_MEMORY_BYTES = 64 << 20
CGROUP_REMEDY = "run the peer as a systemd service with `Delegate=yes`, or as root"
INSTALL_REMEDY = "install bubblewrap: `apt install bubblewrap` or `dnf install bubblewrap`"
APPARMOR_REMEDY = "give /usr/bin/bwrap an AppArmor profile that has the rule `userns,`"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was tried; each text says why something does not work and is empty where it does."""

    groups: ControlGroups | None
    groups_reason: str
    namespaces_reason: str
    landlock_reason: str


def probe() -> Findings:
    """Tries everything. Blocks for a few hundredths of a second: call it off the event loop."""
    found = find_control_groups()
    groups, groups_reason = (None, found) if isinstance(found, str) else (found, "")
    if platform.system() != "Linux":
        nothing = f"boxes need Linux, this is {platform.system()}"
        return Findings(None, nothing, nothing, nothing)
    try:
        compile_filter()
    except KeyError:
        nothing = f"no system-call filter is known for {platform.machine()}"
        return Findings(groups, groups_reason, nothing, nothing)
    namespaces_reason = _try_namespaces()
    return Findings(groups, groups_reason, namespaces_reason, _try_landlock() if namespaces_reason else "")


def isolation_of(findings: Findings) -> Isolation:
    """The grade that the findings allow, and why it is not better."""
    if not findings.namespaces_reason and findings.groups is not None:
        return Isolation(Grade.A)
    if not findings.namespaces_reason:
        return Isolation(Grade.B, f"no hard limits: {findings.groups_reason}; {CGROUP_REMEDY}")
    if not findings.landlock_reason:
        return Isolation(Grade.C, f"no namespaces: {findings.namespaces_reason}")
    reason = f"no namespaces: {findings.namespaces_reason}; no Landlock: {findings.landlock_reason}"
    return Isolation(Grade.D, reason)


def _try_namespaces() -> str:
    if not bubblewrap_sandbox.is_installed():
        return f"bubblewrap is not installed; {INSTALL_REMEDY}"
    said = _try_box(BubblewrapSandbox(Isolation(Grade.B), None))
    if not said:
        return ""
    if _kernel_setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return f"AppArmor keeps bwrap from making user namespaces ({said}); {APPARMOR_REMEDY}"
    if _kernel_setting("kernel/unprivileged_userns_clone") == "0":
        return f"user namespaces are switched off ({said}); `sysctl kernel.unprivileged_userns_clone=1`"
    if _kernel_setting("user/max_user_namespaces") == "0":
        return f"user namespaces are switched off ({said}); `sysctl user.max_user_namespaces=15000`"
    return f"bwrap fails: {said}; a container needs to be started with user namespaces allowed"


def _try_landlock() -> str:
    version = landlock_version()
    if not version:
        return "this kernel has no Landlock; update to Linux 5.13 or later and boot with `lsm=landlock,…`"
    if os.geteuid() != 0 and version < SIGNAL_SCOPE_VERSION:
        return "this kernel cannot keep code from signalling your processes; update to Linux 6.12 or later"
    return _try_box(LandlockSandbox(Isolation(Grade.C), None))


def _try_box(sandbox: ProcessSandbox) -> str:
    return sandbox.try_out(BoxSpec("probe", PROBE_PROGRAM, memory_bytes=PROBE_MEMORY_BYTES))


def _kernel_setting(name: str) -> str:
    try:
        return Path(f"/proc/sys/{name}").read_text().strip()
    except OSError:
        return ""
