"""The program of one Dask worker in a box: `python -m croft.dask.worker ADDRESS MEMBER --threads N --memory BYTES …`.

It has no network and needs none: its scheduler and the other workers are members of its circle.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click
from distributed import Worker

from croft.client.circle import BoxMember
from croft.dask import comm

STREAMS_OPEN_MAX = 48
"""Connections that a worker keeps open to others; idle ones are closed first. A link carries a hundred or so."""


class BoxedWorker(Worker):  # type: ignore[misc]  # distributed is not typed
    """A Dask worker without a page of its own: nobody could reach it."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Starts nothing."""


async def work(scheduler: str, member: str, *, name: str, threads: int, memory_bytes: int, trusted: bool) -> None:
    """Works until the scheduler lets it go."""
    circle = scheduler.partition("://")[2].partition("/")[0]
    seat = comm.Seat(BoxMember(), circle, member, is_guarded=not trusted)
    comm.take_seat(seat)
    worker = BoxedWorker(
        scheduler,
        name=int(name) if name.isdecimal() else name,
        nthreads=threads,
        memory_limit=memory_bytes,
        host=seat.address,
        protocol=comm.SCHEME,
        local_directory=str(Path.cwd()),
        dashboard=False,
    )
    worker.rpc.limit = STREAMS_OPEN_MAX
    await worker
    await worker.finished()


@click.command()
@click.argument("scheduler")
@click.argument("member")
@click.option("--name", required=True)
@click.option("--threads", type=int, required=True)
@click.option("--memory", type=int, required=True)
@click.option("--trusted", is_flag=True)
def main(scheduler: str, member: str, name: str, threads: int, memory: int, trusted: bool) -> None:
    """One Dask worker, in a box."""
    asyncio.run(work(scheduler, member, name=name, threads=threads, memory_bytes=memory, trusted=trusted))
    sys.stdout.flush()
    os._exit(0)  # threads of the user's code must not keep it


if __name__ == "__main__":
    main()
