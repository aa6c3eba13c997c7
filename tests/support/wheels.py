"""Small wheels for tests, sound ones and others."""

from __future__ import annotations

import base64
import hashlib
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"


def recorded(data: bytes) -> str:
    """What RECORD says of a file with this content."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make(
    folder: Path,
    name: str,
    files: Mapping[str, str | bytes],
    *,
    version: str = "1.0",
    tag: str = "py3-none-any",
    record: str | None = None,
    requires: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """A wheel of these files. `record`: what its RECORD says instead of the truth; `links`: symbolic links in it."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    contents = {place: text.encode() if isinstance(text, str) else text for place, text in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode()
    contents[f"{info}/WHEEL"] = (WHEEL + f"Tag: {tag}\n").encode()
    contents.update({place: target.encode() for place, target in (links or {}).items()})
    lines = [f"{place},{recorded(data)},{len(data)}\n" for place, data in contents.items()]
    contents[f"{info}/RECORD"] = ("".join(lines) + f"{info}/RECORD,,\n" if record is None else record).encode()
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for place, data in contents.items():
            entry = zipfile.ZipInfo(place, (1980, 1, 1, 0, 0, 0))
            kind = stat.S_IFLNK | 0o777 if place in (links or {}) else stat.S_IFREG | 0o644
            entry.external_attr = kind << 16
            entry.compress_type = compression
            archive.writestr(entry, data)
    return path


def installed(folder: Path, wheel: Path) -> Path:
    """Installs a wheel into a folder, as far as `importlib.metadata` is concerned."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
