"""A box of each kind that holds foreign code, and a secret of its peer outside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.boxes import CONFINING_KINDS, sandbox_of
from support.cells import SECRET, SECRET_VARIABLE, Cell


@pytest.fixture(scope="module", params=CONFINING_KINDS)
def cell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    os.environ[SECRET_VARIABLE] = SECRET
    opened = Cell(request.param, sandbox_of(request.param), tmp_path_factory.mktemp("work"))
    yield opened
    opened.close()
    del os.environ[SECRET_VARIABLE]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    path = tmp_path / "key"
    path.write_text(SECRET)
    path.chmod(0o644)
    return path
