"""What a builder unpacks, and what it refuses: hostile wheels leave nothing outside their folder."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from blake3 import blake3

from croft.compute.environment_builder import BadWheel, Room, build, unpack
from croft.compute.environment_messages import Built, NotBuilt
from support.wheels import make, recorded

MIB = 1 << 20


def refused(wheel: Path, root: Path, *, bytes_max: int = MIB, files_max: int = 100) -> str:
    """Why a wheel is refused. Asserts that nothing but the builder's own folder was touched."""
    around = sorted(path for path in root.parent.rglob("*") if not path.is_relative_to(root))
    root.mkdir(exist_ok=True)
    with pytest.raises(BadWheel) as caught:
        unpack(str(wheel), wheel.name, str(root), Room(bytes_max, files_max))
    assert sorted(path for path in root.parent.rglob("*") if not path.is_relative_to(root)) == around
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "build" / "job"


@pytest.fixture(autouse=True)
def _made(root: Path) -> None:
    root.mkdir(parents=True)


def test_a_sound_wheel_is_unpacked_compiled_and_its_programs_can_run(tmp_path: Path, root: Path) -> None:
    files = {
        "tiny/__init__.py": "A = 1\n",
        "tiny/tests/test_it.py": "B = 1\n",
        "tiny-1.0.data/scripts/tiny": "#!python\nprint(1)\n",
        "tiny-1.0.data/purelib/more.py": "C = 1\n",
        "tiny-1.0.data/headers/tiny.h": "int x;\n",
    }
    wheel = make(tmp_path, "tiny", files)

    answer = build(str(root), Room(MIB, 100), [(wheel.name, blake3(wheel.read_bytes()).hexdigest(), str(wheel))])

    assert isinstance(answer, Built)
    assert (root / "tiny/__init__.py").read_text() == "A = 1\n"
    assert (root / "more.py").is_file()
    assert (root / "bin/tiny").read_text() == "#!/usr/bin/env python3\nprint(1)\n"
    assert os.access(root / "bin/tiny", os.X_OK)
    assert list((root / "tiny/__pycache__").iterdir())
    assert not (root / "tiny/tests/__pycache__").exists()
    assert not (root / "tiny-1.0.data").exists()


def test_a_wheel_that_is_not_what_its_digest_says_is_told_apart_from_a_bad_one(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "tiny", {"tiny.py": ""})

    answer = build(str(root), Room(MIB, 100), [(wheel.name, "00" * 32, str(wheel))])
    lost = build(str(root), Room(MIB, 100), [(wheel.name, "00" * 32, str(tmp_path / "none"))])

    assert answer == NotBuilt(wheel.name, "it is not what its digest says", is_damaged=True)
    assert isinstance(lost, NotBuilt) and lost.is_damaged
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "place",
    [
        "../outside.py",
        "tiny/../../outside.py",
        "/tmp/outside.py",
        "tiny//x.py",
        "./x.py",
        "C:/x.py",
        "..\\outside.py",
        "tiny/\nx.py",
        "tiny-1.0.data/purelib/../../../outside.py",
        "/".join(["deep"] * 60) + "/x.py",
        "x" * 300 + ".py",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(place: str, tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {place: "x = 1\n"})

    assert "path" in refused(wheel, root)
    assert not Path("/tmp/outside.py").exists()


def test_a_symbolic_link_is_refused(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": ""}, links={"link": "/etc"})

    assert "no regular file" in refused(wheel, root)


def test_a_bomb_is_stopped_by_what_it_unpacks_to_and_not_by_what_it_says(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "bomb", {"zeros.bin": bytes(8 * MIB)})

    assert "takes more than" in refused(wheel, root)
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 2 * MIB


def test_too_many_files_are_refused(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "many", {f"f{number}.txt": "" for number in range(200)})

    assert "more than 100 files" in refused(wheel, root)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("evil-1.0.dist-info/RECORD,,\n", "does not list"),
        (f"evil.py,{recorded(b'other')},1\n", "does not list"),
        ("not,three\n", "three columns"),
        ("a,sha256=x,1\na,sha256=x,1\n", "twice"),
    ],
)
def test_a_record_that_is_wrong_is_refused(record: str, reason: str, tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": "x = 1\n"}, record=record)

    assert reason in refused(wheel, root)


def full_record(**changed: str) -> str:
    told = {"evil.py": recorded(b"x = 1\n"), **changed}
    metadata = b"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"
    marks = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    told |= {"evil-1.0.dist-info/METADATA": recorded(metadata), "evil-1.0.dist-info/WHEEL": recorded(marks)}
    return "".join(f"{place},{digest},1\n" for place, digest in told.items())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"evil.py": recorded(b"y = 1\n")}, "not what its RECORD says"),
        ({"evil.py": "md5=abc"}, "no hash"),
        ({"evil.py": ""}, "no hash"),
        ({"ghost.py": recorded(b"")}, "which is not there"),
    ],
)
def test_content_that_its_record_does_not_describe_is_refused(
    changed: dict[str, str], reason: str, tmp_path: Path, root: Path
) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": "x = 1\n"}, record=full_record(**changed))

    assert reason in refused(wheel, root)


def test_a_wheel_that_holds_another_distribution_is_refused(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": ""})
    renamed = wheel.rename(tmp_path / "good-1.0-py3-none-any.whl")

    assert "holds evil-1.0" in refused(renamed, root)


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": "x = 1\n"})
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("evil.py", "x = 2\n")

    assert "twice" in refused(wheel, root)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_wheels_do_not_use_is_refused(compression: int, tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": "x = 1\n"}, compression=compression)

    assert "compressed in a way" in refused(wheel, root)


def test_an_encrypted_file_is_refused(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": "x = 1\n"})
    data = bytearray(wheel.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    wheel.write_bytes(data)

    assert "encrypted" in refused(wheel, root)


@pytest.mark.parametrize("cut", [0, 1, 50, 150])
def test_a_wheel_that_is_cut_off_or_no_archive_is_refused(cut: int, tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil.py": "x = 1\n"})
    wheel.write_bytes(wheel.read_bytes()[:cut])

    assert "zip archive" in refused(wheel, root)


def test_any_byte_that_is_changed_is_either_refused_or_harmless(tmp_path: Path, root: Path) -> None:
    """Whatever a damaged archive says, nothing leaves the folder, and no error but `BadWheel` ends the builder."""
    whole = make(tmp_path / "whole", "evil", {"evil/a.py": "x = 1\n", "evil/b.txt": "b" * 200}).read_bytes()
    wheel = tmp_path / "evil-1.0-py3-none-any.whl"
    before = sorted(tmp_path.rglob("*"))
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        wheel.write_bytes(damaged)
        try:
            unpack(str(wheel), wheel.name, str(root), Room(MIB, 100))
        except BadWheel:
            pass
    wheel.unlink()
    for path in sorted(tmp_path.rglob("*")):
        assert path in before or path.is_relative_to(root)


def test_files_that_two_wheels_share_are_those_of_the_later_one_and_never_written_through(
    tmp_path: Path, root: Path
) -> None:
    one, two = make(tmp_path, "one", {"shared.py": "one"}), make(tmp_path, "two", {"shared.py": "two"})
    (root / "shared.py").symlink_to(tmp_path / "target")

    for wheel in (one, two):
        unpack(str(wheel), wheel.name, str(root), Room(MIB, 100))

    assert (root / "shared.py").read_text() == "two"
    assert not (tmp_path / "target").exists()


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, root: Path) -> None:
    wheel = make(tmp_path, "evil", {"evil": "x", "evil/x.py": "x = 1\n"})

    assert "cannot be unpacked" in refused(wheel, root)


def test_an_empty_archive_is_refused(tmp_path: Path, root: Path) -> None:
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    wheel = tmp_path / "evil-1.0-py3-none-any.whl"
    wheel.write_bytes(empty.getvalue())

    assert "dist-info" in refused(wheel, root)
