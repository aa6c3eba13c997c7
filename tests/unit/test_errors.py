"""Errors survive the wire."""

import pytest

from croft.errors import CroftError, by_code


def kinds() -> list[type[CroftError]]:
    found, pending = [], [CroftError]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if kind is not CroftError:
            found.append(kind)
    return found


@pytest.mark.parametrize("kind", kinds())
def test_an_error_comes_back_as_its_own_class(kind: type[CroftError]) -> None:
    error = by_code(kind.code, "what", "do")

    assert type(error) is kind
    assert (error.message, error.remedy) == ("what", "do")


def test_an_unknown_code_is_kept() -> None:
    error = by_code("from_the_future", "what")

    assert type(error) is CroftError
    assert error.code == "from_the_future"
