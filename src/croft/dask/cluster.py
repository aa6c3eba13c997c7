"""`GridCluster`: a Dask scheduler in this program, workers in leased boxes, one circle around them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask
from distributed import Scheduler
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import ProcessInterface, SpecCluster

from croft.client.circle import HomeMember
from croft.client.command import CommandEvents, run_command
from croft.client.grid import connect
from croft.client.serialise import PYTHON
from croft.client.task import names_of
from croft.compute.worker_messages import OWN_PYTHON
from croft.control.quantities import size_bytes
from croft.control.work_messages import CommandEnded, OpenCommandJob
from croft.dask import comm
from croft.errors import CroftError, Usage

if TYPE_CHECKING:
    from croft.client.grid import Grid

log = logging.getLogger(__name__)

START_WAIT_S = 5.0
"""A worker that has no place by then goes on waiting for one, in the background."""
PAUSE_FIRST_S, PAUSE_MAX_S = 0.5, 30.0
STEADY_S = 30.0
"""Who lived that long is replaced without a pause."""
LAST_WORDS_CHARS = 2_000
TRUST = ("", "pickle")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SAFE_METHODS = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}
"""What Dask does otherwise lets workers send pickles to the scheduler."""


class GridWorker(ProcessInterface):  # type: ignore[misc]  # distributed is not typed
    """One worker's place in the cluster: whoever dies in it is replaced until the place is closed."""

    def __init__(self, scheduler: str, name: Any, cluster: GridCluster) -> None:
        super().__init__(scheduler=scheduler, name=name)
        self.name = name
        self._scheduler = scheduler
        self._grid_cluster = cluster
        self._has_place = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._said = ""
        self.peer = ""

    async def start(self) -> None:
        """Asks for a place, and waits a little for it. Raises CroftError if no peer takes the worker."""
        self._running = asyncio.create_task(self._keep_running(), name=f"dask.worker.{self.name}")
        waiting = asyncio.create_task(self._has_place.wait())
        try:
            await asyncio.wait({self._running, waiting}, timeout=START_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._running.done():
            self._running.result()
        await super().start()

    async def close(self) -> None:
        """Ends the worker and frees its lease. Idempotent."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await super().close()

    async def _keep_running(self) -> None:
        pause_s, loop = PAUSE_FIRST_S, asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                ended = await self._run_once()
                why = ended.reason or (f"signal {ended.signal}" if ended.signal else f"exit code {ended.exit_code}")
            except CroftError as error:
                if not self._has_place.is_set():
                    raise
                why = error.message
            if not self._grid_cluster.has_circle:
                log.error("Croft's daemon has ended, and with it this Dask cluster: close it, and make another one.")
                return
            log.warning("Dask worker %s on %s ended: %s\n%s", self.name, self.peer or "no peer", why, self._said)
            pause_s = PAUSE_FIRST_S if loop.time() - began > STEADY_S else min(2 * pause_s, PAUSE_MAX_S)
            await asyncio.sleep(pause_s)

    async def _run_once(self) -> CommandEnded:
        cluster = self._grid_cluster
        self._said, self.peer = "", ""

        def started(peer: str) -> None:
            self.peer = peer
            self._has_place.set()

        def said(_: int, data: bytes) -> None:
            self._said = (self._said + data.decode(errors="replace"))[-LAST_WORDS_CHARS:]

        opening = cluster.opening(self._scheduler, str(self.name))
        return await run_command(cluster.work_socket, opening, CommandEvents(said, started))


class GridCluster(SpecCluster):  # type: ignore[misc]  # distributed is not typed
    """A Dask cluster on the peers: give it to `distributed.Client`.

    The scheduler runs in this program; each worker is a process in a box on some lender, under a lease of `cpus`
    processors and `mem` memory. Workers reach one another straight from peer to peer. Versions of Python and of Dask
    must be about the same there and here.

    Results come back in the safe codec: numbers, text, containers, arrays, data frames. With `trust="pickle"` they are
    pickles, and workers may do whatever Dask's may, so whoever runs one can run code in this program: it then uses only
    your own devices and peers of people whom you trust (`croft contacts trust NAME high`).

    Args:
        grid: a connected `croft.Grid`; by default one of its own.
        workers: how many; `scale` and `adapt` change it.
        mem: memory of each worker, such as "4G". cpus: processors, and threads, of each.
        disk: what it may spill to, such as "10G"; by default a share of what the lender offers.
        on, avoid: names of peers to use alone, or never. needs: devices.
        environment: packages to bring, as for `Grid.map`; without, the lenders' own Python must have `distributed`.
        trust: "" or "pickle".
        dashboard_address: where the dashboard is served; this machine alone, unless you say otherwise.

    Raises:
        Unreachable: the daemon is not running. Refused: no peer takes such a worker. Usage: a size that is none.
    """

    def __init__(
        self,
        grid: Grid | None = None,
        workers: int = 1,
        *,
        mem: str | int = "2G",
        cpus: int = 1,
        disk: str | int = 0,
        on: Sequence[str] = (),
        avoid: Sequence[str] = (),
        needs: Sequence[str] = (),
        environment: str | Sequence[str] = (),
        trust: str = "",
        dashboard_address: str = "127.0.0.1:8787",
        name: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
    ) -> None:
        if trust not in TRUST:
            raise Usage(f"`{trust}` is no trust", remedy='It is "" or "pickle".')
        self._own_grid = connect() if grid is None else None
        self._grid = grid or self._own_grid
        assert self._grid is not None, "one of the two is there"
        self._trust = trust
        self._mem_bytes, self._disk_bytes, self._cpus = size_bytes(mem), size_bytes(disk), cpus
        self._needs = tuple(needs)
        self._packages = self._grid.packages(names_of(environment))
        self._only, self._never = self._choose(self._grid, names_of(on), names_of(avoid))
        self._members = itertools.count(1)
        self._seat: comm.Seat | None = None
        self._home: HomeMember | None = None
        self._dashboard_address = dashboard_address
        self._methods = None if trust else dask.config.set({**SAFE_METHODS, **_chosen_by_user()})
        worker = {"cls": GridWorker, "options": {"cluster": self}}
        try:
            super().__init__(
                workers=dict.fromkeys(range(workers), worker),
                worker=worker,
                asynchronous=asynchronous,
                loop=loop,
                silence_logs=logging.WARNING,
                name=name,
            )
        except BaseException:
            self._release()
            raise
        self._i = workers

    @property
    def work_socket(self) -> Any:
        """Where the daemon takes work."""
        assert self._grid is not None, "it is there until the cluster is closed"
        return self._grid.work_socket

    @property
    def has_circle(self) -> bool:
        """Whether its daemon still is the one that it began with."""
        return self._home is not None and self._home.is_open

    @property
    def dashboard_link(self) -> str:
        """The address of the dashboard on this machine."""
        port = self.scheduler.services["dashboard"].port if "dashboard" in self.scheduler.services else 0
        return f"http://127.0.0.1:{port}/status" if port else ""

    def opening(self, scheduler: str, name: str) -> OpenCommandJob:
        """The command of one more worker, under a member's name of its own."""
        assert self._seat is not None, "the circle is open while workers start"
        member = f"w{next(self._members)}"
        arguments = ["--name", name, "--threads", str(self._cpus), "--memory", str(self._mem_bytes)]
        return OpenCommandJob(
            [
                OWN_PYTHON,
                "-m",
                "croft.dask.worker",
                scheduler,
                member,
                *arguments,
                *(["--trusted"] if self._trust else []),
            ],
            {**dict.fromkeys(THREAD_VARIABLES, "1"), "MALLOC_TRIM_THRESHOLD_": "65536"},
            [],
            [],
            list(self._only),
            list(self._never),
            cpus=float(self._cpus),
            memory_bytes=self._mem_bytes,
            disk_bytes=self._disk_bytes,
            needs=self._needs,
            circle=self._seat.circle,
            member=member,
            packages=self._packages,
            python=PYTHON,
            label=f"Dask worker {name}",
        )

    def _choose(self, grid: Grid, on: Sequence[str], avoid: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        only, never = grid.peer_ids(on), grid.peer_ids(avoid)
        if not self._trust:
            return only, never
        peers = grid.peers()
        trusted = {peer.peer for peer in peers if peer.is_self or peer.trust in ("own", "high")}
        if strangers := [peer.name for peer in peers if peer.peer in only and peer.peer not in trusted]:
            raise Usage(
                f"you do not trust {', '.join(strangers)} with your account",
                remedy='Say so, `croft contacts trust NAME high`, or leave out trust="pickle".',
            )
        return only or tuple(sorted(trusted)), never

    # --- life --------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self._seat is None:
            home = HomeMember(self.work_socket)
            try:
                await home.open()
            except CroftError:
                self.status = Status.closed
                raise
            self._home = home
            self._seat = comm.Seat(home, home.circle, home.name, is_guarded=not self._trust)
            comm.take_seat(self._seat)
            options = {
                "host": self._seat.address,
                "protocol": comm.SCHEME,
                "dashboard": True,
                "dashboard_address": self._dashboard_address,
            }
            self.scheduler_spec = {"cls": Scheduler, "options": options}
        await super()._start()

    async def _close(self) -> None:
        await super()._close()
        self._release()

    def _release(self) -> None:
        if self._seat is not None:
            comm.leave_seat(self._seat)
            self._seat.member.close()
        if self._methods is not None:
            self._methods.__exit__(None, None, None)
            self._methods = None
        if self._own_grid is not None:
            self._own_grid.close()

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # A worker that died is replaced in its place: the place stays.
        Cluster._update_worker_status(self, op, msg)


def _chosen_by_user() -> dict[str, Any]:
    chosen = {key: dask.config.get(key, None) for key in SAFE_METHODS}
    return {key: value for key, value in chosen.items() if value is not None}
