"""Which names of files a lender may give for those in a folder."""

from __future__ import annotations

import pytest

from croft.compute.commands import is_inside


@pytest.mark.parametrize("path", ["a", "a/b.txt", "deep/" * 60 + "er", "with space", "...", "..a"])
def test_what_is_below_the_folder_is_taken(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "..", "../up", "a/../../up", "a//b", "a/./b", "a/", "line\nbreak", "deep/" * 70 + "er"]
)
def test_what_is_not_is_refused(path: str) -> None:
    assert not is_inside(path)
