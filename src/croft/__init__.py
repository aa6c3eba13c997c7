"""One computer out of the machines that people already own.

>>> import croft
>>> grid = croft.connect()
>>> list(grid.map(len, ["a", "bb"]))
[1, 2]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from croft.client.async_grid import AsyncGrid, connect_async
    from croft.client.async_jobs import AsyncJob
    from croft.client.async_map import AsyncMapResult
    from croft.client.durable import Job
    from croft.client.executor import GridExecutor
    from croft.client.grid import Grid, connect
    from croft.client.map_result import MapResult
    from croft.client.task import Task, task
    from croft.control.backup_schema import RetentionPolicy
    from croft.errors import (
        Busy,
        Cancelled,
        CodecError,
        CroftError,
        Failed,
        NotFound,
        Refused,
        TaskDied,
        TaskDisputed,
        TaskFailed,
        TaskTimedOut,
        TimedOut,
        TooLarge,
        Unreachable,
        Unserialisable,
        Usage,
    )

_PLACES = {
    "connect": "croft.client.grid",
    "Grid": "croft.client.grid",
    "MapResult": "croft.client.map_result",
    "GridExecutor": "croft.client.executor",
    "connect_async": "croft.client.async_grid",
    "AsyncGrid": "croft.client.async_grid",
    "AsyncJob": "croft.client.async_jobs",
    "AsyncMapResult": "croft.client.async_map",
    "Job": "croft.client.durable",
    "RetentionPolicy": "croft.control.backup_schema",
    "Task": "croft.client.task",
    "task": "croft.client.task",
}

__all__ = [
    "AsyncGrid",
    "AsyncJob",
    "AsyncMapResult",
    "Busy",
    "Cancelled",
    "CodecError",
    "CroftError",
    "Failed",
    "Grid",
    "GridExecutor",
    "Job",
    "MapResult",
    "NotFound",
    "Refused",
    "RetentionPolicy",
    "Task",
    "TaskDied",
    "TaskDisputed",
    "TaskFailed",
    "TaskTimedOut",
    "TimedOut",
    "TooLarge",
    "Unreachable",
    "Unserialisable",
    "Usage",
    "connect",
    "connect_async",
    "task",
]


def __getattr__(name: str) -> Any:
    # Imported at first use: the command line and the workers in boxes import this package and need little of it.
    if name not in __all__:
        raise AttributeError(f"module 'croft' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES.get(name, "croft.errors")), name)
