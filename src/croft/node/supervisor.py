"""Keeps the peer's services running: one that fails is started again after a pause that doubles.

A bug (an AssertionError) is not restarted: it ends the process, so that it is seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from croft.node.health import Health

log = logging.getLogger(__name__)

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 30.0
STEADY_S = 60.0
"""A service that ran for this long starts again without the pauses it had earned before."""


async def supervise(name: str, serve: Callable[[], Awaitable[None]], health: Health) -> None:
    """Runs `serve` until it returns or this is cancelled."""
    loop = asyncio.get_running_loop()
    pause_s = PAUSE_FIRST_S
    while True:
        started = loop.time()
        try:
            # A task of its own: a TaskGroup in it cancels the task that it runs in when a part fails, and until
            # Python 3.13 leaves it looking as if somebody had asked for the end.
            await asyncio.ensure_future(serve())
            return
        except Exception as error:
            if _is_bug(error):
                log.critical("%s: a bug ends this process", name, exc_info=error)
                raise
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # What fails while it is being ended must not begin anew.
                log.exception("%s failed while it ended", name)
                raise asyncio.CancelledError from error
            if loop.time() - started > STEADY_S:
                pause_s = PAUSE_FIRST_S
            log.exception("%s failed; it starts again in %.1f s", name, pause_s)
            health.warn(f"service.{name}", f"{name} failed and starts again: {error}", remedy="See the log.")
            await asyncio.sleep(pause_s)
            health.clear(f"service.{name}")
            pause_s = min(pause_s * 2, PAUSE_MAX_S)


def _is_bug(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_bug(inner) for inner in error.exceptions)
    return isinstance(error, AssertionError)
