"""Shows, beside a test that failed, what the daemons of its real peers logged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import peers


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's result
    if report.failed:
        for peer in peers.LIVING:
            lines = peer.log().splitlines()[-peers.LOG_LINES_SHOWN :]
            report.sections.append((f"log of {peer.name}", "\n".join(lines)))
