"""What lock files of each kind pin here."""

from __future__ import annotations

from pathlib import Path

import pytest

from croft.client.lock_files import Lock, Pin, read_lock
from croft.errors import Usage

ONE, TWO = "1" * 64, "2" * 64

REQUIREMENTS = f"""
--index-url https://index.example/simple
--find-links ./more
numpy==2.1.0 \\
    --hash=sha256:{ONE} \\
    --hash=sha256:{TWO}
    # via me
Typing_Extensions==4.12.2 ; python_version >= "3.8"  # a comment
never==1.0 ; python_version < "3.0"
-r more.txt
"""

PYLOCK = f"""
lock-version = "1.0"
[[packages]]
name = "numpy"
version = "2.1.0"
wheels = [{{ name = "numpy-2.1.0-py3-none-any.whl", hashes = {{ sha256 = "{ONE}" }} }}]
[[packages]]
name = "never"
version = "1.0"
marker = "python_version < '3.0'"
wheels = [{{ name = "never-1.0-py3-none-any.whl", hashes = {{ sha256 = "{TWO}" }} }}]
"""

UV = f"""
version = 1
[[package]]
name = "mine"
version = "0.1"
source = {{ editable = "." }}
dependencies = [{{ name = "a", extra = ["fast"] }}, {{ name = "never", marker = "python_version < '3'" }}]
[[package]]
name = "a"
version = "1.0"
source = {{ registry = "https://index.example/simple" }}
dependencies = [{{ name = "b" }}]
wheels = [{{ url = "https://index.example/a.whl", hash = "sha256:{ONE}" }}]
[package.optional-dependencies]
fast = [{{ name = "c" }}]
[[package]]
name = "b"
version = "2.0"
source = {{ registry = "https://index.example/simple" }}
dependencies = [{{ name = "a" }}]
wheels = [{{ url = "https://index.example/b.whl", hash = "sha256:{TWO}" }}]
[[package]]
name = "c"
version = "3.0"
source = {{ registry = "https://index.example/simple" }}
wheels = [{{ url = "https://index.example/c.whl", hash = "sha256:{TWO}" }}]
[[package]]
name = "never"
version = "9.0"
source = {{ registry = "https://index.example/simple" }}
"""


def locked(folder: Path, name: str, text: str) -> Lock:
    (folder / name).write_text(text)
    return read_lock(folder / name)


def test_requirements_pin_versions_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("six==1.16.0\n")

    lock = locked(tmp_path, "requirements.txt", REQUIREMENTS)

    assert lock.pins == [
        Pin("numpy", "2.1.0", frozenset({ONE, TWO})),
        Pin("typing-extensions", "4.12.2"),
        Pin("six", "1.16.0"),
    ]
    assert lock.folders == [tmp_path / "more"]


def test_a_pylock_pins_what_its_markers_admit(tmp_path: Path) -> None:
    assert locked(tmp_path, "pylock.toml", PYLOCK).pins == [Pin("numpy", "2.1.0", frozenset({ONE}))]


def test_a_uv_lock_is_followed_from_the_project_through_extras_and_cycles(tmp_path: Path) -> None:
    pins = locked(tmp_path, "uv.lock", UV).pins

    assert sorted(pins, key=lambda pin: pin.name) == [
        Pin("a", "1.0", frozenset({ONE})),
        Pin("b", "2.0", frozenset({TWO})),
        Pin("c", "3.0", frozenset({TWO})),
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("requirements.txt", "numpy>=2\n", "does not pin numpy"),
        ("requirements.txt", "numpy\n", "does not pin numpy"),
        ("requirements.txt", "numpy==2.*\n", "does not pin numpy"),
        ("requirements.txt", "numpy @ https://example.org/numpy.whl\n", "does not pin numpy"),
        ("requirements.txt", "-e ./mine\n", "editable project"),
        ("requirements.txt", "???\n", "is not a requirement"),
        ("requirements.txt", "-r requirements.txt\n", "includes itself"),
        ("requirements.txt", "-r none.txt\n", "cannot be read"),
        ("pylock.toml", "[", "cannot be read"),
        ("pylock.toml", "x = 1\n", "is no lock file"),
        ("pylock.toml", 'lock-version = "1.0"\n', "not such a lock file"),
        ("pylock.toml", 'lock-version = "1.0"\n[[packages]]\nname = "a"\n', "has no wheel of a"),
        ("uv.lock", "x = 1\n", "not such a lock file"),
    ],
)
def test_what_is_no_lock_is_named(name: str, text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Usage, match=reason):
        locked(tmp_path, name, text)
