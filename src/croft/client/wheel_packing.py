"""Makes wheels of what is installed here and of the user's own projects: the same bytes from the same files, always.

Nothing is compressed, for what a compressor makes of a file depends on its version.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import stat
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from blake3 import blake3

from croft.adapters.environment_cache import EnvironmentCache
from croft.compute.environment import WHEEL_NAME
from croft.errors import Failed, Usage

EARLIEST = (1980, 1, 1, 0, 0, 0)
NOT_PACKED = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
"""Files of `.dist-info` that say how it was installed here."""
NATIVE_BUILDERS = {"cython", "maturin", "setuptools-rust", "scikit-build-core", "meson-python", "pybind11", "cffi"}
NATIVE_SUFFIXES = {".so", ".pyd", ".dylib"}
SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
DOWNLOAD = "Put its wheel into a folder and give that: `pip download --only-binary :all: --no-deps -d wheels {}`."
GENERATOR = "Wheel-Version: 1.0\nGenerator: croft\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True)
class LocalWheel:
    """A wheel that is in the cache now."""

    name: str
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with a `pyproject.toml`: its wheel's name and version, what it needs, and its files by place."""

    name: str
    version: str
    requires: tuple[str, ...]
    files: Mapping[str, Path]


def put(cache: EnvironmentCache, source: Path, name: str = "") -> LocalWheel:
    """Puts a wheel that is a file into the cache. Raises Failed, Usage."""
    name = name or source.name
    if not WHEEL_NAME.fullmatch(name):
        raise Usage(f"{name} is not named as wheels are", remedy="Build it again with `pip wheel`.")
    try:
        digest, size = cache.put(source)
    except OSError as error:
        raise Failed(f"the wheel {source} cannot be kept: {error.strerror}") from None
    return LocalWheel(name, size, digest)


def pack_installed(cache: EnvironmentCache, found: Distribution) -> LocalWheel:
    """The wheel of an installed distribution, made of the files that are there now. Raises Usage, Failed."""
    name = found.metadata["Name"]
    files = {PurePosixPath(str(file)): Path(str(found.locate_file(file))) for file in found.files or ()}
    infos = {path.parts[0] for path in files if path.parts[0].endswith(".dist-info")}
    marks = found.read_text("WHEEL")
    if len(infos) != 1 or marks is None:
        raise Usage(f"{name} was not installed from a wheel, so none can be made of it", remedy=DOWNLOAD.format(name))
    packed = {str(path): place for path, place in files.items() if _is_packed(path)}
    stem = infos.pop().removesuffix(".dist-info")
    return _remembered(cache, f"{stem}-{tag_of(marks)}.whl", stem, packed, {})


def editable_folder(found: Distribution) -> Path | None:
    """The project's folder, if a distribution is installed as a link to that."""
    text = found.read_text("direct_url.json")
    described: dict[str, Any] = json.loads(text) if text else {}
    if not described.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(described["url"]).path))


def read_project(folder: Path) -> Project:
    """What a folder's `pyproject.toml` says. Raises Usage if it is not a pure-Python project that can be packed."""
    try:
        table = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"{folder / 'pyproject.toml'} cannot be read: {error}") from None
    about = table.get("project", {})
    name = about.get("name")
    build_it = f"Build its wheel and give the folder that has it: `pip wheel --no-deps -w wheels {folder}`."
    if not isinstance(name, str):
        raise Usage(f"{folder / 'pyproject.toml'} names no project", remedy="Write `[project]` with a `name` there.")
    builders = {
        re.split(r"[^A-Za-z0-9-]", text)[0].lower() for text in table.get("build-system", {}).get("requires", ())
    }
    if native := builders & NATIVE_BUILDERS:
        raise Usage(f"the project {name} is not pure Python: it is built with {min(native)}", remedy=build_it)
    files = dict(_project_files(folder, name))
    if not files:
        raise Usage(f"the project {name} has no package of its name in {folder} or in its src", remedy=build_it)
    if compiled := [place for place in files if PurePosixPath(place).suffix in NATIVE_SUFFIXES]:
        raise Usage(f"the project {name} is not pure Python: {compiled[0]}", remedy=build_it)
    return Project(name, str(about.get("version", "0")), tuple(about.get("dependencies", ())), files)


def pack_project(cache: EnvironmentCache, project: Project) -> LocalWheel:
    """The wheel of a project, made of its files as they are now. Raises Failed."""
    stem = f"{re.sub(r'[-_.]+', '_', project.name).lower()}-{project.version.replace('-', '_')}"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in project.requires)
    about = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project.name}\n"
        f"Version: {project.version}\n{needs}",
        f"{stem}.dist-info/WHEEL": GENERATOR,
    }
    return _remembered(cache, f"{stem}-py3-none-any.whl", stem, project.files, about)


def _project_files(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """All packages and modules below `src`, else what is called like the project."""
    source = folder / "src"
    if source.is_dir():
        tops = [top for top in sorted(source.iterdir()) if not top.name.endswith((".egg-info", ".dist-info"))]
    else:
        source, own = folder, re.sub(r"[-_.]+", "_", name)
        tops = [folder / one for one in dict.fromkeys((own, own.lower(), f"{own}.py", f"{own.lower()}.py"))]
    for top in tops:
        if top.is_file() and top.suffix == ".py":
            yield top.name, top
        elif top.is_dir() and not _is_skipped(top):
            for path in sorted(top.rglob("*")):
                below = path.relative_to(source)
                if path.is_file() and path.suffix != ".pyc" and not any(map(_is_skipped, below.parents)):
                    yield below.as_posix(), path


def _is_skipped(folder: Path) -> bool:
    return folder.name in SKIPPED_FOLDERS or folder.name.startswith(".")


def _is_packed(path: PurePosixPath) -> bool:
    if ".." in path.parts or path.is_absolute() or "__pycache__" in path.parts or path.suffix == ".pyc":
        return False
    return not (path.parts[0].endswith(".dist-info") and path.name in NOT_PACKED and len(path.parts) == 2)


def tag_of(marks: str) -> str:
    """The compressed tags of a wheel (PEP 425) from what its `WHEEL` file says."""
    tags = [line.partition(":")[2].strip().split("-") for line in marks.splitlines() if line.startswith("Tag:")]
    columns = zip(*(tag for tag in tags if len(tag) == 3), strict=True)
    return "-".join(".".join(dict.fromkeys(sorted(column))) for column in columns) or "py3-none-any"


def _remembered(
    cache: EnvironmentCache, name: str, stem: str, files: Mapping[str, Path], texts: Mapping[str, str]
) -> LocalWheel:
    """The wheel as it was made before, if no file has changed since; else a new one. Raises Failed."""
    try:
        key = _key(name, files, texts)
        known = cache.packed(key)
        if known is not None:
            return LocalWheel(*known)
        with cache.part() as part:
            _write(part, stem, files, texts)
            wheel = put(cache, part, name)
        cache.remember_packed(key, wheel.name, wheel.size, wheel.digest)
    except OSError as error:
        raise Failed(f"no wheel can be made of {stem}: {error}", remedy="Install it again.") from None
    return wheel


def _key(name: str, files: Mapping[str, Path], texts: Mapping[str, str]) -> str:
    hasher = blake3(repr([name, sorted(texts.items())]).encode())
    for place, path in sorted(files.items()):
        details = path.stat()
        hasher.update(repr([place, str(path), details.st_size, details.st_mtime_ns, details.st_mode]).encode())
    return hasher.hexdigest()


def _write(target: Path, stem: str, files: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for place in sorted({*files, *texts}):
            data = texts[place].encode() if place in texts else files[place].read_bytes()
            is_program = place not in texts and bool(files[place].stat().st_mode & stat.S_IXUSR)
            archive.writestr(_entry(place, is_program), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow((place, f"sha256={digest}", len(data)))
        rows.writerow((f"{stem}.dist-info/RECORD", "", ""))
        archive.writestr(_entry(f"{stem}.dist-info/RECORD", False), record.getvalue())


def _entry(place: str, is_program: bool) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(place, EARLIEST)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | (0o755 if is_program else 0o644)) << 16
    return entry
