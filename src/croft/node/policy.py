"""What the owner of this machine allows: the settings, turned into boxes and refusals."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from croft.adapters.box_process import MINIMAL_PATH, remove_folder
from croft.adapters.python_runtime import builder_argv, runtime_environment, runtime_paths, wheel_tags, worker_argv
from croft.compute.messages import OpenCommand, OpenTasks
from croft.compute.worker_messages import ENVIRONMENT_VARIABLE
from croft.control.config import Config
from croft.control.home import Home
from croft.errors import Failed, Refused
from croft.model.amounts import BOX, CPU, DISK, MEMORY, Amounts
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
ENVIRONMENT_FILES_MAX = 100_000
BUILD_MEMORY_BYTES = 512 << 20
CPUS_MIN = 0.1


class OwnersPolicy:
    """See `croft.compute.lending_terms.Policy`."""

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

    def check(self, twin: TwinId, *, is_wasm: bool = False) -> None:
        """Raises Refused if this machine's isolation is not good enough for this twin's code.

        WebAssembly holds itself: it runs at any grade, unless the twin is trusted so little that only the best will do.
        """
        trust = self._trust_of(twin)
        if trust is Trust.NONE:
            raise Refused(
                "the owner of this peer trusts you with nothing: no code of yours runs here",
                remedy="That owner may change it: croft contacts trust YOU normal",
            )
        required, origin = self._required(trust)
        if is_wasm and trust is not Trust.LOW:
            required = Grade.D
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

    def task_wants(self, opening: OpenTasks, most: Amounts, room: Amounts) -> Amounts:
        """What a box of tasks takes; processors only if it asks for them: else it takes turns with others."""
        return Amounts.of(
            {
                BOX: 1,
                CPU: min(max(opening.cpus, 0), most[CPU]),
                MEMORY: opening.memory_bytes or _default(most[MEMORY], room[MEMORY]),
                **dict.fromkeys(opening.needs, 1),
            }
        )

    def command_wants(self, opening: OpenCommand, most: Amounts, room: Amounts) -> Amounts:
        """What the box of one command takes: a processor at least, all of them at most."""
        return Amounts.of(
            {
                BOX: 1,
                CPU: max(1, min(round(opening.cpus), most[CPU])),
                MEMORY: opening.memory_bytes or _default(most[MEMORY], room[MEMORY]),
                DISK: opening.disk_bytes or min(most[DISK] // COMMAND_DISK_SHARE, room[DISK] // 2),
                **dict.fromkeys(opening.needs, 1),
            }
        )

    def task_box(
        self, twin: TwinId, amounts: Amounts, slots: int, devices: Mapping[str, str], environment: str = ""
    ) -> BoxSpec:
        """The warm box of one consumer, in which up to `slots` tasks run at once."""
        memory = max(MEMORY_BYTES_MIN, amounts[MEMORY])
        return BoxSpec(
            name=f"tasks-{next(self._numbers)}-{twin[:8]}",
            argv=worker_argv(slots),
            read_only=self._seen(environment),
            environment={**self._environment, **_finding(environment)},
            devices=devices,
            host_name=self._host_name,
            cpus=slots,
            memory_bytes=memory,
            processes_max=PROCESSES_PER_SLOT * slots,
            scratch_bytes=min(SCRATCH_BYTES_MAX, memory // 2),
        )

    def command_box(self, amounts: Amounts, cpus: float, devices: Mapping[str, str], environment: str = "") -> BoxSpec:
        """The box of one command, its work folder made. Raises Failed."""
        name = f"command-{next(self._numbers)}"
        folder = self._make_folder(name)
        memory, slots = max(MEMORY_BYTES_MIN, amounts[MEMORY]), amounts[CPU]
        return BoxSpec(
            name=name,
            argv=worker_argv(1),
            read_only=self._seen(environment),
            work_dir=folder,
            environment={**self._environment, **_finding(environment)},
            devices=devices,
            host_name=self._host_name,
            cpus=min(max(cpus, CPUS_MIN), slots),
            memory_bytes=memory,
            processes_max=PROCESSES_PER_SLOT * slots,
            scratch_bytes=min(SCRATCH_BYTES_MAX, memory // 2),
            work_bytes=amounts[DISK],
        )

    def wheel_tags(self) -> Sequence[str]:
        """What wheels for the interpreter in the boxes are marked with, best first."""
        return wheel_tags()

    def build_box(self, wheels: Path, arguments: Sequence[str], bytes_max: int) -> BoxSpec:
        """The box in which wheels are unpacked, its work folder made. Raises Failed."""
        name = f"build-{next(self._numbers)}"
        return BoxSpec(
            name=name,
            argv=builder_argv(bytes_max, ENVIRONMENT_FILES_MAX, arguments),
            read_only=(*self._paths, str(wheels)),
            work_dir=self._make_folder(name),
            environment=self._environment,
            host_name=self._host_name,
            memory_bytes=BUILD_MEMORY_BYTES,
            processes_max=PROCESSES_PER_SLOT,
            work_bytes=2 * bytes_max,
            work_files_max=2 * ENVIRONMENT_FILES_MAX,
        )

    def _make_folder(self, name: str) -> Path:
        folder = self._home.jobs / name
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise Failed(f"no folder can be made for a box: {error.strerror}") from None
        return folder

    def _seen(self, environment: str) -> tuple[str, ...]:
        return (*self._paths, environment) if environment else self._paths

    def discard(self, spec: BoxSpec) -> None:
        """Removes the work folder of a box that is closed, whatever the code inside made of it. Blocks."""
        if spec.work_dir is None:
            return
        try:
            remove_folder(spec.work_dir)
        except OSError as error:
            log.warning("what a command left in %s stays until the next start: %s", spec.work_dir, error.strerror)


def _finding(environment: str) -> dict[str, str]:
    """Variables by which a worker and its commands find packages and scripts, and the Python that they are for."""
    if not environment:
        return {}
    folders = (f"{environment}/bin", str(Path(sys.executable).parent), MINIMAL_PATH)
    return {"PYTHONPATH": environment, "PATH": ":".join(folders), ENVIRONMENT_VARIABLE: environment}


def _default(offered: int, free: int) -> int:
    """Memory of a box that asks for none: a part of what is offered, and never more than half of what is left."""
    wanted = min(offered // BOX_MEMORY_SHARE, free // 2)
    return max(MEMORY_BYTES_MIN, wanted, min(BOX_MEMORY_BYTES_MIN, free))


def _host_name(name: str) -> str:
    """The peer's name as a host name (RFC 1123), so that `hostname` in a box says where it runs."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return letters.strip("-")[:63].strip("-") or "box"
