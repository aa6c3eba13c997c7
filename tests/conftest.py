"""What holds for every test; beside one that failed, shows what the daemons of its real peers logged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from support import peers

# How fast a machine happens to be says nothing about the code.
settings.register_profile("croft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("croft")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's result
    if report.failed:
        for peer in peers.LIVING:
            lines = peer.log().splitlines()[-peers.LOG_LINES_SHOWN :]
            report.sections.append((f"log of {peer.name}", "\n".join(lines)))
