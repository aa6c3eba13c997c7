"""Finds wheels that are on this machine: in folders, and among what pip has downloaded before. Asks no index."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, canonicalize_version, parse_wheel_filename

from croft.client.lock_files import Pin
from croft.client.wheel_packing import tag_of

BODY_BYTES_MIN = 500
"""Smaller than any wheel."""


class Shelf:
    """The wheels of this machine for this Python: on whatever platform, for lenders may differ."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(dict.fromkeys(folder.resolve() for folder in folders))

    def find(self, pin: Pin) -> list[tuple[str, Path]]:
        """File names and places of the wheels that may stand for a pin; empty if there is none."""
        for shelf in (self._in_folders, self._of_pip):
            same = shelf.get((pin.name, canonicalize_version(pin.version)), [])
            found = [(name, path) for name, path in same if not pin.sha256 or _sha256(path) in pin.sha256]
            if found:
                return found
        return []

    def has_another(self, pin: Pin) -> bool:
        """Whether that version is here, with hashes that the pin does not name."""
        key = (pin.name, canonicalize_version(pin.version))
        return key in self._in_folders or key in self._of_pip

    @cached_property
    def _in_folders(self) -> dict[tuple[str, str], list[tuple[str, Path]]]:
        found: dict[tuple[str, str], list[tuple[str, Path]]] = {}
        for folder in self._folders:
            for path in sorted(folder.glob("*.whl")):
                if key := fitting_key(path.name):
                    found.setdefault(key, []).append((path.name, path))
        return found

    @cached_property
    def _of_pip(self) -> dict[tuple[str, str], list[tuple[str, Path]]]:
        found: dict[tuple[str, str], list[tuple[str, Path]]] = {}
        for name, path in _pip_wheels(_pip_cache()):
            if key := fitting_key(name):
                found.setdefault(key, []).append((name, path))
        return found


def fitting_key(name: str) -> tuple[str, str] | None:
    """Distribution and version of a wheel by its file name; None if it is not for this Python."""
    try:
        distribution, version, _, tags = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return None
    if not any((tag.interpreter, tag.abi) in _ours() for tag in tags):
        return None
    return canonicalize_name(distribution), canonicalize_version(str(version))


_known: set[tuple[str, str]] = set()


def _ours() -> set[tuple[str, str]]:
    if not _known:
        _known.update((tag.interpreter, tag.abi) for tag in sys_tags())
    return _known


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_cache() -> Path:
    if named := os.environ.get("PIP_CACHE_DIR"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/pip"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pip"


def _pip_wheels(cache: Path) -> Iterator[tuple[str, Path]]:
    """What pip built itself is under its name; what it downloaded is a body beside a description of the answer."""
    for path in sorted(cache.glob("wheels/**/*.whl")):
        yield path.name, path
    for path in sorted(cache.glob("http-v2/**/*.body")):
        name = _name_inside(path)
        if name:
            yield name, path


def _name_inside(path: Path) -> str:
    """The file name that a wheel must have had, by what is in it; "" for what is no wheel."""
    try:
        if path.stat().st_size < BODY_BYTES_MIN:
            return ""
        with zipfile.ZipFile(path) as archive:
            marks = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL") and name.count("/") == 1]
            if len(marks) != 1:
                return ""
            stem = marks[0].partition(".dist-info/")[0]
            return f"{stem}-{tag_of(archive.read(marks[0]).decode())}.whl"
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError, RuntimeError):
        return ""
