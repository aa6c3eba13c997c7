"""What the owner of this machine allows: the settings, turned into boxes and refusals."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable

from croft.adapters.box_process import remove_folder
from croft.adapters.python_runtime import runtime_environment, runtime_paths, worker_argv
from croft.compute.messages import OpenCommand
from croft.control.config import Config
from croft.control.home import Home
from croft.errors import Failed, Refused
from croft.model.ids import TwinId
from croft.model.isolation import Grade, Isolation
from croft.overlay.contacts import Trust
from croft.ports import BoxSpec

log = logging.getLogger(__name__)

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MEMORY_BYTES_MIN = 64 << 20
BOX_MEMORY_SHARE = 4
"""A box that asks for nothing gets this part of the lent memory."""
BOX_MEMORY_BYTES_MIN = 256 << 20
PROCESSES_PER_SLOT = 64
SCRATCH_BYTES_MAX = 256 << 20
COMMAND_DISK_SHARE = 4


class OwnersPolicy:
    """See `croft.compute.lender.Policy`."""

    def __init__(
        self,
        home: Home,
        config: Config,
        own_name: str,
        isolation: Callable[[], Isolation],
        trust_of: Callable[[TwinId], Trust],
    ) -> None:
        self._home = home
        self._config = config
        self._trust_of = trust_of
        self._isolation = isolation
        self._host_name = _host_name(own_name)
        self._numbers = itertools.count(1)
        self._paths = runtime_paths()
        self._environment = runtime_environment()

    def python(self) -> str:
        """Major.minor of the interpreter in the boxes."""
        return PYTHON

    def check(self, twin: TwinId) -> None:
        """Raises Refused if this machine's isolation is not good enough for this twin's code."""
        trust = self._trust_of(twin)
        if trust is Trust.NONE:
            raise Refused(
                "the owner of this peer trusts you with nothing: no code of yours runs here",
                remedy="That owner may change it: croft contacts trust YOU normal",
            )
        required, origin = self._required(trust)
        isolation = self._isolation()
        if not isolation.grade.holds(required):
            raise Refused(
                f"this machine holds foreign code at isolation grade {isolation.grade}, its owner requires {required}",
                remedy=isolation.reason or f"Its owner may change {origin}.",
            )

    def _required(self, trust: Trust) -> tuple[Grade, str]:
        """The grade that a person's code needs here, and what makes it so."""
        if trust is Trust.LOW:
            return Grade.A, "how far you are trusted: croft contacts trust YOU normal"
        key = "sandbox.own_devices_grade" if trust is Trust.HIGH else "sandbox.required_grade"
        return self._config[key], f"the setting `{key}`"

    def task_box(self, twin: TwinId, memory_bytes: int) -> BoxSpec:
        """The warm box of one consumer."""
        slots = max(1, self._config["lend.cpus"])
        return BoxSpec(
            name=f"tasks-{next(self._numbers)}-{twin[:8]}",
            argv=worker_argv(slots),
            read_only=self._paths,
            environment=self._environment,
            host_name=self._host_name,
            cpus=slots,
            memory_bytes=self._memory(memory_bytes),
            processes_max=PROCESSES_PER_SLOT * slots,
            scratch_bytes=min(SCRATCH_BYTES_MAX, self._memory(memory_bytes) // 2),
        )

    def command_box(self, opening: OpenCommand) -> BoxSpec:
        """The box of one command, its work folder made. Raises Refused, Failed."""
        memory = self._memory(opening.memory_bytes)
        disk = opening.disk_bytes or self._config["lend.disk"] // COMMAND_DISK_SHARE
        number = next(self._numbers)
        folder = self._home.jobs / f"command-{number}"
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise Failed(f"no folder can be made for a command: {error.strerror}") from None
        slots = max(1, self._config["lend.cpus"])
        cpus = min(max(opening.cpus, 0.1), slots)
        return BoxSpec(
            name=f"command-{number}",
            argv=worker_argv(1),
            read_only=self._paths,
            work_dir=folder,
            environment=self._environment,
            host_name=self._host_name,
            cpus=cpus,
            memory_bytes=memory,
            processes_max=PROCESSES_PER_SLOT * max(1, round(cpus)),
            scratch_bytes=min(SCRATCH_BYTES_MAX, memory // 2),
            work_bytes=min(disk, self._config["lend.disk"]),
        )

    def discard(self, spec: BoxSpec) -> None:
        """Removes the work folder of a box that is closed, whatever the code inside made of it. Blocks."""
        if spec.work_dir is None:
            return
        try:
            remove_folder(spec.work_dir)
        except OSError as error:
            log.warning("what a command left in %s stays until the next start: %s", spec.work_dir, error.strerror)

    def _memory(self, wanted: int) -> int:
        lent: int = self._config["lend.memory"]
        if wanted > lent:
            raise Refused(
                f"it asks for {wanted >> 20} MiB of memory, this peer lends {lent >> 20} MiB",
                remedy="Ask for less, or use a larger peer: `croft peers`.",
            )
        default = min(lent, max(lent // BOX_MEMORY_SHARE, BOX_MEMORY_BYTES_MIN))
        return max(MEMORY_BYTES_MIN, wanted or default)


def _host_name(name: str) -> str:
    """The peer's name as a host name (RFC 1123), so that `hostname` in a box says where it runs."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return letters.strip("-")[:63].strip("-") or "box"
