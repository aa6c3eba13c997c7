"""What a box needs in order to run this peer's own Python: paths to see, environment, command line."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

SYSTEM_PREFIX = "/usr"


def worker_argv(slots: int = 1) -> tuple[str, ...]:
    """The command line of a worker that runs `slots` chunks at once; `{fd}` stands for its socket."""
    worker = Path(__file__).parent.parent / "compute" / "worker.py"
    return (sys.executable, "-sEP", str(worker), "{fd}", str(slots))


def builder_argv(bytes_max: int, files_max: int, wheels: Sequence[str]) -> tuple[str, ...]:
    """The command line of a builder of environments; see `croft.compute.environment_builder`."""
    builder = Path(__file__).parent.parent / "compute" / "environment_builder.py"
    return (sys.executable, "-sEP", str(builder), "{fd}", str(bytes_max), str(files_max), *wheels)


def wheel_tags() -> list[str]:
    """What wheels for this interpreter on this machine are marked with, best first."""
    from packaging.tags import sys_tags  # takes a while, and few peers ever need it

    return [str(tag) for tag in sys_tags()]


def runtime_paths() -> tuple[str, ...]:
    """Folders besides /usr that hold the interpreter, its packages and Croft itself; outer ones first."""
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    candidates = {sys.base_prefix, sys.prefix, *packages, str(Path(__file__).parents[2])}
    # A virtual environment's interpreter is a chain of links, and every step of it must be there.
    link = Path(sys.executable)
    while link.is_symlink():
        link = link.parent / link.readlink()
        candidates.add(os.path.normpath(link.parent.parent))
    kept: list[str] = []
    for path in sorted(candidates):
        if path != "/" and not any(Path(path).is_relative_to(outer) for outer in (SYSTEM_PREFIX, *kept)):
            kept.append(path)
    return tuple(kept)


def runtime_environment() -> dict[str, str]:
    """Variables without which the interpreter does not start, or loads another one's library."""
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    folder = sysconfig.get_config_var("LIBDIR")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and folder and not Path(folder).is_relative_to(SYSTEM_PREFIX):
        environment["LD_LIBRARY_PATH"] = str(folder)
    return environment
