"""Turns what a user names (lock files, projects, wheels, installed packages) into an environment that can travel.

All of it is found on this machine. What is not there is an error that says how to get it: no index is ever asked.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from croft.adapters.environment_cache import EnvironmentCache
from croft.client.lock_files import Lock, read_lock
from croft.client.serialise import PYTHON
from croft.client.wheel_packing import (
    DOWNLOAD,
    LocalWheel,
    editable_folder,
    pack_installed,
    pack_project,
    put,
    read_project,
)
from croft.client.wheel_shelf import Shelf, fitting_key
from croft.compute.environment import Environment, Wheel, distribution_of
from croft.control.home import Home
from croft.errors import NotFound, Usage

ON_EVERY_PEER = {"croft"}
LOCK_SUFFIXES = (".txt", ".toml", ".lock", ".in")
WHEEL_FOLDERS = ("wheels", "wheelhouse", ".")
"""Where wheels are looked for, from the folder of a lock file."""
MISSING_SHOWN_MAX = 5


def resolve(home: Home, sources: Sequence[str]) -> Environment:
    """The environment of all these sources, its wheels in the cache of the peer of `home`.

    Each source is a lock file, a wheel, a folder of wheels, the folder of a project, or the name of something that is
    installed here, with what it needs. What a lock file or a wheel gives comes before what is installed.

    Raises Usage, NotFound, Failed.
    """
    gathered = _Gathered(EnvironmentCache(home.environments, 0))
    for source in sources:
        gathered.add(source)
    wheels = sorted(gathered.wheels(), key=lambda wheel: wheel.name)
    return Environment(PYTHON, [Wheel(wheel.name, wheel.size, wheel.digest) for wheel in wheels])


class _Gathered:
    """The wheels so far, by distribution."""

    def __init__(self, cache: EnvironmentCache) -> None:
        self._cache = cache
        self._found: dict[str, list[LocalWheel]] = {}
        self._wanted: list[tuple[Requirement, str]] = []

    def add(self, source: str) -> None:
        path = Path(source).expanduser()
        if path.is_dir() and not _is_installed_name(source):
            self._add_folder(path)
        elif source.endswith(".whl") and path.is_file():
            self._add_wheels([path], f"the wheel {path}")
        elif path.is_file():
            self._add_lock(read_lock(path))
        elif os.sep in source or source.endswith((*LOCK_SUFFIXES, ".whl")):
            raise Usage(f"there is no {source}", remedy="Name a lock file, a folder, a wheel or an installed package.")
        else:
            self._wanted.append((_requirement(source), "the environment"))

    def wheels(self) -> Iterable[LocalWheel]:
        """All wheels, once what is wanted has been found too."""
        self._add_installed()
        if not self._found:
            raise Usage("the environment is empty", remedy="Leave it out, or name what is to be in it.")
        return {wheel.name: wheel for same in self._found.values() for wheel in same}.values()

    def _add_folder(self, folder: Path) -> None:
        if (folder / "pyproject.toml").is_file():
            self._add_project(folder)
        elif wheels := sorted(folder.glob("*.whl")):
            self._add_wheels(wheels, f"the folder {folder}")
        else:
            raise Usage(f"{folder} is neither a project nor a folder of wheels", remedy="It has no pyproject.toml.")

    def _add_wheels(self, paths: Sequence[Path], what: str) -> None:
        fitting = [path for path in paths if fitting_key(path.name)]
        if not fitting:
            raise Usage(f"{what} is not for Python {PYTHON}", remedy="Use the Python that it is made for.")
        for path in fitting:
            self._keep(put(self._cache, path))

    def _add_project(self, folder: Path) -> None:
        project = read_project(folder)
        self._keep(pack_project(self._cache, project))
        self._wanted += [(_requirement(text), project.name) for text in project.requires]

    def _add_lock(self, lock: Lock) -> None:
        shelf = Shelf([*(lock.path.parent / name for name in WHEEL_FOLDERS), *lock.folders])
        missing: list[str] = []
        for pin in lock.pins:
            if pin.name in ON_EVERY_PEER:
                continue
            found = shelf.find(pin)
            if not found:
                other = " (a file of that version is there, its hash is another one)" if shelf.has_another(pin) else ""
                missing.append(f"{pin.name} {pin.version}{other}")
            for name, path in found:
                self._keep(put(self._cache, path, name))
        if missing:
            shown = ", ".join(missing[:MISSING_SHOWN_MAX])
            more = f" and {len(missing) - MISSING_SHOWN_MAX} more" if len(missing) > MISSING_SHOWN_MAX else ""
            folder = lock.path.parent / WHEEL_FOLDERS[0]
            raise NotFound(
                f"wheels of {lock.path} are not on this machine: {shown}{more}",
                remedy=f"Get them: pip download --only-binary :all: --no-deps -r {lock.path} -d {folder}",
            )

    def _add_installed(self) -> None:
        given = set(self._found)  # by lock files, wheels and projects; what they need, they say themselves
        done: set[tuple[str, frozenset[str]]] = set()
        while self._wanted:
            wanted, by = self._wanted.pop()
            name = canonicalize_name(wanted.name)
            key = (name, frozenset(wanted.extras))
            if name not in ON_EVERY_PEER and name not in given and key not in done:
                done.add(key)
                self._add_one(name, wanted, by)

    def _add_one(self, name: str, wanted: Requirement, by: str) -> None:
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise NotFound(
                f"{by} needs {wanted.name}, which is not installed here",
                remedy=f"Install it here (pip install '{wanted}'), or: " + DOWNLOAD.format(f"'{wanted}'"),
            ) from None
        if not wanted.specifier.contains(found.version, prereleases=True):
            raise Usage(
                f"{by} needs {wanted}, and {found.version} is installed here",
                remedy=f"Install another one: pip install '{wanted}'",
            )
        folder = editable_folder(found)
        if folder is not None:
            self._keep(pack_project(self._cache, read_project(folder)))
        else:
            self._keep(pack_installed(self._cache, found))
        for text in found.requires or ():
            needed = _requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                self._wanted.append((needed, found.metadata["Name"]))

    def _keep(self, wheel: LocalWheel) -> None:
        same = self._found.setdefault(distribution_of(wheel.name), [])
        if wheel not in same:
            same.append(wheel)


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement:
        raise Usage(f"`{text}` names no package", remedy="Write it like `numpy` or `numpy>=2`.") from None


def _is_installed_name(source: str) -> bool:
    """Whether a source can only be the name of something installed, though a folder may be called like it."""
    path = Path(source).expanduser()
    is_folder = path.is_dir() and (os.sep in source or source.startswith(".") or (path / "pyproject.toml").is_file())
    return not path.is_file() and not is_folder and not any(path.glob("*.whl"))
