"""Wheels are made of what is installed and of projects, always the same ones from the same files."""

from __future__ import annotations

import os
import shutil
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from croft.adapters.environment_cache import EnvironmentCache
from croft.client.wheel_packing import editable_folder, pack_installed, pack_project, read_project
from croft.compute.environment_builder import Room, unpack
from croft.errors import Usage
from support.wheels import installed, make

MIB = 1 << 20
FILES = {"tiny/__init__.py": "A = 1\n", "tiny/data/x.bin": b"\0" * 100}


@pytest.fixture
def cache(tmp_path: Path) -> EnvironmentCache:
    return EnvironmentCache(tmp_path / "cache", MIB)


def found(folder: Path) -> Distribution:
    (one,) = distributions(path=[str(folder)])
    return one


def install(tmp_path: Path, name: str = "site", *, tag: str = "py3-none-any") -> Distribution:
    return found(installed(tmp_path / name, make(tmp_path / "made", "tiny", FILES, tag=tag)))


def test_an_installed_distribution_becomes_a_wheel_that_unpacks_to_the_same_files(
    tmp_path: Path, cache: EnvironmentCache
) -> None:
    wheel = pack_installed(cache, install(tmp_path))

    root = tmp_path / "root"
    root.mkdir()
    unpack(str(cache.place(wheel.digest)), wheel.name, str(root), Room(MIB, 100))
    assert wheel.name == "tiny-1.0-py3-none-any.whl"
    assert wheel.size == cache.place(wheel.digest).stat().st_size
    assert {place: (root / place).read_bytes() for place in FILES} == {
        place: text.encode() if isinstance(text, str) else text for place, text in FILES.items()
    }


def test_two_machines_make_the_same_wheel_of_the_same_distribution(tmp_path: Path) -> None:
    """Other times, another order on disk, other traces of the installer and compiled modules make no difference."""
    one = install(tmp_path, "one")
    two = install(tmp_path, "two")
    for at, path in enumerate(sorted((tmp_path / "two").rglob("*"), reverse=True)):
        os.utime(path, (at * 1000 + 1, at * 1000 + 1))
    info = tmp_path / "two" / "tiny-1.0.dist-info"
    lines = (info / "RECORD").read_text().splitlines()
    (info / "INSTALLER").write_text("pip\n")
    (tmp_path / "two/tiny/__pycache__").mkdir()
    (tmp_path / "two/tiny/__pycache__/__init__.cpython-311.pyc").write_bytes(b"compiled")
    more = ["tiny-1.0.dist-info/INSTALLER,,", "tiny/__pycache__/__init__.cpython-311.pyc,,", "../../bin/tiny,,"]
    (info / "RECORD").write_text("\n".join([*reversed(lines), *more]) + "\n")

    packed = [
        pack_installed(EnvironmentCache(tmp_path / f"cache-{n}", MIB), which) for n, which in enumerate((one, two))
    ]

    assert packed[0] == packed[1]


def test_a_wheel_is_made_once_and_again_when_a_file_has_changed(tmp_path: Path, cache: EnvironmentCache) -> None:
    tiny = install(tmp_path)
    first = pack_installed(cache, tiny)
    made = cache.place(first.digest).stat().st_ino

    again = pack_installed(cache, tiny)
    (tmp_path / "site/tiny/__init__.py").write_text("A = 2\n")
    changed = pack_installed(cache, tiny)
    cache.drop(first.digest)

    assert again == first
    assert cache.place(changed.digest).stat().st_ino != made
    assert changed.digest != first.digest
    assert pack_installed(cache, tiny) == changed


def test_the_tags_of_the_wheel_that_was_installed_are_kept(tmp_path: Path, cache: EnvironmentCache) -> None:
    tiny = install(tmp_path)
    marks = tmp_path / "site/tiny-1.0.dist-info/WHEEL"
    marks.write_text("Wheel-Version: 1.0\nTag: cp312-abi3-linux_x86_64\nTag: cp312-abi3-manylinux_2_17_x86_64\n")

    assert pack_installed(cache, tiny).name == "tiny-1.0-cp312-abi3-linux_x86_64.manylinux_2_17_x86_64.whl"


def test_what_was_not_installed_from_a_wheel_is_named(tmp_path: Path, cache: EnvironmentCache) -> None:
    tiny = install(tmp_path)
    (tmp_path / "site/tiny-1.0.dist-info/WHEEL").unlink()

    with pytest.raises(Usage, match="tiny was not installed from a wheel"):
        pack_installed(cache, tiny)


def test_an_editable_project_is_found_where_it_is(tmp_path: Path) -> None:
    tiny = install(tmp_path)
    place = tmp_path / "site/tiny-1.0.dist-info/direct_url.json"
    place.write_text('{"url": "file:///home/me/my%20project", "dir_info": {"editable": true}}')

    assert editable_folder(tiny) == Path("/home/me/my project")
    place.write_text('{"url": "file:///home/me/project", "dir_info": {}}')
    assert editable_folder(tiny) is None


def project(folder: Path, *, layout: str = "src", more: str = "") -> Path:
    top = folder / "src" if layout == "src" else folder
    package = top / "my_tool"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("A = 1\n")
    (package / "table.csv").write_text("1,2\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/x.pyc").write_bytes(b"compiled")
    (folder / "tests").mkdir()
    (folder / "tests/test_it.py").write_text("")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "my-tool"\nversion = "2.1"\ndependencies = ["tiny>=1"]\n' + more
    )
    return folder


@pytest.mark.parametrize("layout", ["src", "flat"])
def test_a_project_becomes_a_wheel_of_its_package_and_data(
    layout: str, tmp_path: Path, cache: EnvironmentCache
) -> None:
    told = read_project(project(tmp_path / "p", layout=layout))
    wheel = pack_project(cache, told)

    with zipfile.ZipFile(cache.place(wheel.digest)) as archive:
        names = sorted(archive.namelist())
        metadata = archive.read("my_tool-2.1.dist-info/METADATA").decode()
    assert wheel.name == "my_tool-2.1-py3-none-any.whl"
    assert told.requires == ("tiny>=1",)
    assert "Requires-Dist: tiny>=1" in metadata
    assert names == [
        *(f"my_tool-2.1.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")),
        "my_tool/__init__.py",
        "my_tool/table.csv",
    ]


def test_a_project_in_another_place_is_the_same_wheel(tmp_path: Path, cache: EnvironmentCache) -> None:
    first = pack_project(cache, read_project(project(tmp_path / "p")))
    shutil.copytree(tmp_path / "p", tmp_path / "q")

    assert pack_project(cache, read_project(tmp_path / "q")) == first


@pytest.mark.parametrize(
    ("more", "name", "reason"),
    [
        ('[build-system]\nrequires = ["maturin>=1"]\n', "", "built with maturin"),
        ("", "fast.so", "not pure Python: my_tool/fast.so"),
    ],
)
def test_a_project_that_is_not_pure_python_is_named(more: str, name: str, reason: str, tmp_path: Path) -> None:
    folder = project(tmp_path / "p", more=more)
    if name:
        (folder / "src/my_tool" / name).write_bytes(b"")

    with pytest.raises(Usage, match=reason):
        read_project(folder)


def test_a_project_without_a_package_or_a_name_is_named(tmp_path: Path) -> None:
    folder = project(tmp_path / "p")
    shutil.rmtree(folder / "src")
    with pytest.raises(Usage, match="has no package of its name"):
        read_project(folder)
    (folder / "pyproject.toml").write_text("[tool.x]\n")
    with pytest.raises(Usage, match="names no project"):
        read_project(folder)
    (folder / "pyproject.toml").write_text("[")
    with pytest.raises(Usage, match="cannot be read"):
        read_project(folder)
