"""What a user names is found on this machine, or the error says how to get it."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from croft.client.environments import resolve
from croft.client.serialise import PYTHON
from croft.control.home import Home
from croft.errors import CroftError, NotFound, Usage
from support.wheels import installed, make

THIS = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))


def names(*sources: str) -> Sequence[str]:
    environment = resolve(Home.find(Path("home").absolute()), sources)
    assert environment.python == PYTHON
    return [wheel.name for wheel in environment.wheels]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installed: `app` 1.0 needs `tiny>=1` and `croft`, with the extra `more` also `other`; `tiny` 1.0; `other` 1.0."""
    folder = tmp_path / "site"
    needs = ["tiny>=1", "croft", "other; extra == 'more'", "never; python_version < '3'"]
    installed(folder, make(tmp_path / "made", "app", {"app.py": ""}, requires=needs))
    installed(folder, make(tmp_path / "made", "tiny", {"tiny.py": ""}, requires=["app"]))
    installed(folder, make(tmp_path / "made", "other", {"other.py": ""}))
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_name_stands_for_what_is_installed_and_all_that_it_needs(site: Path) -> None:
    assert names("app") == ["app-1.0-py3-none-any.whl", "tiny-1.0-py3-none-any.whl"]
    assert names("other", "app[more]>=1") == names("app[more]")
    assert len(names("app[more]")) == 3


def test_a_lock_takes_its_wheels_from_beside_it_and_keeps_to_its_hashes(tmp_path: Path, site: Path) -> None:
    wheel = make(tmp_path / "wheels", "tiny", {"tiny.py": "# locked\n"}, version="3.0")
    lock = tmp_path / "requirements.txt"

    lock.write_text(f"tiny==3.0 --hash=sha256:{sha256(wheel)}\n")
    assert names("requirements.txt") == ["tiny-3.0-py3-none-any.whl"]
    assert names("app", "requirements.txt") == ["app-1.0-py3-none-any.whl", "tiny-3.0-py3-none-any.whl"]

    lock.write_text(f"tiny==3.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(NotFound, match=r"tiny 3\.0 \(a file of that version is there, its hash is another one\)"):
        names("requirements.txt")


def test_a_lock_finds_what_pip_has_downloaded_before(tmp_path: Path) -> None:
    wheel = make(tmp_path / "made", "tiny", {"tiny.py": ""}, version="3.0")
    body = tmp_path / "pip/http-v2/a/b/c/abc.body"
    body.parent.mkdir(parents=True)
    shutil.copy(wheel, body)
    (tmp_path / "requirements.txt").write_text(f"tiny==3.0 --hash=sha256:{sha256(wheel)}\n")

    assert names("requirements.txt") == ["tiny-3.0-py3-none-any.whl"]


def test_what_is_not_here_is_named_with_the_command_that_gets_it(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("tiny==3.0\nother==1.0\n")

    with pytest.raises(NotFound, match=r"not on this machine: tiny 3\.0, other 1\.0") as caught:
        names("requirements.txt")

    assert "pip download --only-binary :all: --no-deps -r requirements.txt -d wheels" in caught.value.remedy


def test_wheels_for_other_platforms_come_along_and_those_for_other_pythons_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    for tag in (f"{THIS}-{THIS}-manylinux_2_17_aarch64", f"{THIS}-{THIS}-manylinux_2_17_x86_64", "cp27-cp27m-win32"):
        make(folder, "num", {"num.py": tag}, tag=tag)

    assert names(str(folder)) == [
        f"num-1.0-{THIS}-{THIS}-manylinux_2_17_aarch64.whl",
        f"num-1.0-{THIS}-{THIS}-manylinux_2_17_x86_64.whl",
    ]


def test_a_project_comes_with_what_it_needs_of_what_is_installed(tmp_path: Path, site: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.py").write_text("")
    (tmp_path / "mine/pyproject.toml").write_text('[project]\nname = "mine"\ndependencies = ["other>=1"]\n')

    assert names("./mine") == ["mine-0-py3-none-any.whl", "other-1.0-py3-none-any.whl"]


def test_a_folder_that_is_called_like_a_package_does_not_hide_it(tmp_path: Path, site: Path) -> None:
    (tmp_path / "tiny").mkdir()

    assert "tiny-1.0-py3-none-any.whl" in names("tiny")


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        ("missing", NotFound, "needs missing, which is not installed"),
        ("tiny>=9", Usage, r"tiny>=9, and 1\.0 is installed"),
        ("no/such/place", Usage, "there is no no/such/place"),
        ("none.txt", Usage, "there is no none.txt"),
        ("./site/..", Usage, "neither a project nor a folder of wheels"),
        ("not a name!", Usage, "names no package"),
        ("old-1.0-cp27-cp27m-win32.whl", Usage, "is not for Python"),
    ],
)
def test_what_cannot_be_meant_is_named(
    source: str, kind: type[CroftError], reason: str, tmp_path: Path, site: Path
) -> None:
    make(tmp_path, "old", {"old.py": ""}, tag="cp27-cp27m-win32")
    if source.startswith("./"):
        (tmp_path / "old-1.0-cp27-cp27m-win32.whl").unlink()

    with pytest.raises(kind, match=reason):
        names(source)
