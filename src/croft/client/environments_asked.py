"""The door to `croft.client.environments`, which takes a while to import and few jobs need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from croft.compute.environment import Environment
    from croft.control.home import Home


def environment_of(home: Home, sources: Sequence[str]) -> Environment | None:
    """What a user named, put together; None if nothing was. Raises Usage, NotFound, Failed."""
    if not sources:
        return None
    from croft.client.environments import resolve

    return resolve(home, sources)
