"""Reads lock files: which versions they pin, with the hashes of the files that may stand for each.

Three kinds: requirements as `pip-compile` and `uv pip compile` write them, `pylock.toml` (PEP 751), and `uv.lock`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.markers import Marker, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from croft.errors import Usage

INCLUDED_MAX = 32
"""Lock files that include others, in all."""
LOCK_IT = "Pin it with its hash: `pip-compile --generate-hashes` or `uv pip compile --generate-hashes`."
BUILD_IT = "Build one, and give the folder that has it."


@dataclass(frozen=True, slots=True)
class Pin:
    """One distribution at one version. `sha256`: of the files that may stand for it; empty: any file."""

    name: str
    version: str
    sha256: frozenset[str] = frozenset()


@dataclass(slots=True)
class Lock:
    """What a lock file pins here, and in which folders it says that files are."""

    path: Path
    pins: list[Pin] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def read_lock(path: Path) -> Lock:
    """Reads a lock file of any kind. Raises Usage that names the file and what in it."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == "uv.lock":
            return Lock(path, list(_uv_pins(path, tomllib.loads(text))))
        if path.suffix == ".toml":
            return Lock(path, list(_pylock_pins(path, tomllib.loads(text))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Usage(f"the lock file {path} cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Usage(f"{path} is not such a lock file as its name says: {error!r}") from None
    lock = Lock(path)
    _read_requirements(lock, path, text, [])
    return lock


# --- requirements ----------------------------------------------------------------------------------------------------


def _read_requirements(lock: Lock, path: Path, text: str, within: Sequence[Path]) -> None:
    if path in within or len(within) > INCLUDED_MAX:
        raise Usage(f"{path} includes itself")
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        if not words:
            continue
        if words.startswith("-"):
            option, _, value = re.sub(r"[ =]", " ", words, count=1).partition(" ")
            if option in ("-r", "--requirement"):
                other = path.parent / value.strip()
                try:
                    _read_requirements(lock, other, other.read_text(encoding="utf-8"), [*within, path])
                except (OSError, UnicodeDecodeError) as error:
                    raise Usage(f"{path} includes {other}, which cannot be read: {error}") from None
            elif option in ("-f", "--find-links") and "://" not in value:
                lock.folders.append(path.parent / value.strip())
            elif option in ("-e", "--editable"):
                raise Usage(
                    f"{path} has an editable project: {value}", remedy="Give its folder as a source of its own."
                )
            continue  # what else there is says where an index is, and none is asked
        pin = _pin(path, words)
        if pin is not None:
            lock.pins.append(pin)


def _pin(path: Path, words: str) -> Pin | None:
    hashes = frozenset(re.findall(r"--hash[= ]sha256:([0-9a-fA-F]{64})", words))
    text = re.sub(r"\s--[a-z-]+[= ]\S+", "", words).strip()
    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        raise Usage(f"{path}: `{text}` is not a requirement", remedy=LOCK_IT) from None
    if wanted.marker is not None and not wanted.marker.evaluate():
        return None
    versions = [one.version for one in wanted.specifier if one.operator in ("==", "===")]
    if wanted.url or len(versions) != 1 or len(wanted.specifier) != 1 or "*" in versions[0]:
        raise Usage(f"{path} does not pin {wanted.name} to one version: `{text}`", remedy=LOCK_IT)
    return Pin(canonicalize_name(wanted.name), versions[0], frozenset(map(str.lower, hashes)))


# --- pylock.toml and uv.lock -----------------------------------------------------------------------------------------


def _pylock_pins(path: Path, table: dict[str, Any]) -> Iterator[Pin]:
    if "lock-version" not in table:
        raise Usage(f"{path} is no lock file", remedy="Give a pylock.toml (PEP 751), or the folder of a project.")
    environment = {**default_environment(), "extras": set(), "dependency_groups": set()}
    for package in table["packages"]:
        marker = package.get("marker")
        if marker and not Marker(marker).evaluate(environment, context="lock_file"):  # type: ignore[arg-type]  # sets, as PEP 751 has them
            continue
        hashes = {str(wheel["hashes"]["sha256"]).lower() for wheel in package.get("wheels", ())}
        if not hashes or "version" not in package:
            raise Usage(f"{path} has no wheel of {package['name']}", remedy=BUILD_IT)
        yield Pin(canonicalize_name(package["name"]), package["version"], frozenset(hashes))


def _uv_pins(path: Path, table: dict[str, Any]) -> Iterator[Pin]:
    """What the project itself needs here, followed through the packages."""
    packages: dict[str, list[dict[str, Any]]] = {}
    for package in table["package"]:
        packages.setdefault(canonicalize_name(package["name"]), []).append(package)
    is_own = {"editable", "virtual", "directory"}
    pending = [(package, None) for same in packages.values() for package in same if is_own & package["source"].keys()]
    seen: set[tuple[str, str, str | None]] = set()
    while pending:
        package, extra = pending.pop()
        key = (package["name"], package.get("version", ""), extra)
        if key in seen:
            continue
        seen.add(key)
        listed = package.get("dependencies", ()) if extra is None else package["optional-dependencies"].get(extra, ())
        for needed in listed:
            if needed.get("marker") and not Marker(needed["marker"]).evaluate():
                continue
            same = packages[canonicalize_name(needed["name"])]
            chosen = next((one for one in same if one.get("version") == needed.get("version")), same[0])
            pending += [(chosen, None), *((chosen, name) for name in needed.get("extra", ()))]
        if extra is None and not is_own & package["source"].keys():
            hashes = {wheel["hash"].removeprefix("sha256:") for wheel in package.get("wheels", ())}
            if not hashes:
                name = package["name"]
                raise Usage(f"{path} has no wheel of {name}", remedy=BUILD_IT)
            yield Pin(canonicalize_name(package["name"]), package["version"], frozenset(hashes))
