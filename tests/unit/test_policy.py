"""Whose code may run here: by the owner's trust and the machine's isolation."""

from __future__ import annotations

from pathlib import Path

import pytest

from croft.control.config import load
from croft.control.home import Home
from croft.errors import Refused
from croft.model.ids import TwinId
from croft.model.isolation import Grade, Isolation
from croft.node.policy import OwnersPolicy
from croft.overlay.contacts import Trust

BOB = TwinId("b" * 64)


def policy(folder: Path, trust: Trust, grade: Grade, **settings: str) -> OwnersPolicy:
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    home = Home.find(folder)
    return OwnersPolicy(home, load(home, flags, {}), "ada", lambda: Isolation(grade, "no cgroups"), lambda _: trust)


@pytest.mark.parametrize(
    ("trust", "grade", "is_let_in"),
    [
        (Trust.NONE, Grade.A, False),
        (Trust.LOW, Grade.A, True),
        (Trust.LOW, Grade.B, False),
        (Trust.NORMAL, Grade.B, True),
        (Trust.NORMAL, Grade.C, False),
        (Trust.HIGH, Grade.C, True),
        (Trust.HIGH, Grade.D, False),
    ],
)
def test_trust_says_at_which_grade_code_may_run(tmp_path: Path, trust: Trust, grade: Grade, is_let_in: bool) -> None:
    found = policy(tmp_path, trust, grade, sandbox__required_grade="B", sandbox__own_devices_grade="C")

    if is_let_in:
        found.check(BOB)
    else:
        with pytest.raises(Refused) as refused:
            found.check(BOB)
        assert refused.value.remedy


@pytest.mark.parametrize(
    ("trust", "grade", "is_let_in"),
    [
        (Trust.NONE, Grade.A, False),
        (Trust.LOW, Grade.A, True),
        (Trust.LOW, Grade.D, False),
        (Trust.NORMAL, Grade.D, True),
        (Trust.HIGH, Grade.D, True),
    ],
)
def test_webassembly_needs_a_grade_only_from_those_who_are_trusted_little(
    tmp_path: Path, trust: Trust, grade: Grade, is_let_in: bool
) -> None:
    found = policy(tmp_path, trust, grade, sandbox__required_grade="B", sandbox__own_devices_grade="B")

    if is_let_in:
        found.check(BOB, is_wasm=True)
    else:
        with pytest.raises(Refused):
            found.check(BOB, is_wasm=True)
