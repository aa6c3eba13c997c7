"""A Dask cluster over real peers: its arrays, frames and bags, its workers' deaths, and what it does not let in."""

from __future__ import annotations

import os
import pickle
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client

import croft
from croft.client.grid import Grid
from croft.dask import GridCluster
from croft.errors import CodecError, Refused, Unreachable, Usage
from support import peers
from support.peers import RealPeer, until

MEMORY = "300M"


@pytest.fixture(scope="module")
def trio() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd"])


@pytest.fixture(scope="module")
def grid(trio: list[RealPeer]) -> Iterator[croft.Grid]:
    with trio[0].grid() as grid:
        yield grid


@pytest.fixture(scope="module")
def cluster(grid: croft.Grid) -> Iterator[GridCluster]:
    """Two workers, each on a peer of its own: one has room for no more."""
    with GridCluster(grid, 2, mem=MEMORY, cpus=2, on=["bob", "cyd"], dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster: GridCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=peers.WAIT_S_MAX)
        yield client


class Touch:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def received_bytes(at: RealPeer, of: RealPeer) -> int:
    """What one peer has received from another one."""
    return sum(way.direct_received_bytes for way in at.api.net().ways if way.name == of.name)


def nap(number: int) -> int:
    time.sleep(0.02)
    return number


# --- work ------------------------------------------------------------------------------------------------------------


def test_calls_arrays_frames_and_bags_give_what_they_give_here(
    client: Client, cluster: GridCluster, grid: croft.Grid
) -> None:
    x = da.arange(1000, chunks=250)[:, None] * 1000 + da.arange(1000, chunks=250)
    frame = pd.DataFrame({"key": np.arange(1000) % 7, "value": np.arange(1000.0)})
    frames = dd.from_pandas(frame, npartitions=4)

    assert client.submit(sum, [1, 2, 3]).result() == 6
    assert client.gather(client.map(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    assert int((x + x.T).sum().compute()) == 2 * sum(range(1_000_000))
    assert np.array_equal((x[:10] * 2).compute(), np.arange(10_000).reshape(10, 1000) * 2)
    pd.testing.assert_series_equal(frames.groupby("key").value.sum().compute(), frame.groupby("key").value.sum())
    pd.testing.assert_frame_equal(frames.set_index("value").compute(), frame.set_index("value"))
    assert db.from_sequence(range(100), npartitions=4).map(str).map(len).sum().compute() == 190
    assert "workers=2" in repr(cluster)
    assert {"Dask worker 0", "Dask worker 1"} <= {job.label for job in grid.jobs() if job.state == "running"}
    assert urllib.request.urlopen(cluster.dashboard_link).status == 200


def test_values_pass_from_worker_to_worker_straight_from_peer_to_peer(client: Client, trio: list[RealPeer]) -> None:
    ada, bob, cyd = trio
    one, two = client.scheduler_info()["workers"]
    before = {(at.name, of.name): received_bytes(at, of) for at in trio for of in trio if at is not of}
    made = client.submit(np.random.default_rng(1).random, 2_000_000, workers=[one])

    assert 900_000 < client.submit(np.sum, made, workers=[two]).result() < 1_100_000
    transfers = client.run(
        lambda dask_worker: [(log["who"], log["total"]) for log in dask_worker.transfer_incoming_log]
    )
    assert (one, 16_000_000) in transfers[two]
    until(
        lambda: any(received_bytes(at, of) - before[at.name, of.name] > 16e6 for at, of in ((bob, cyd), (cyd, bob))),
        "the bytes are seen on the link of the two lenders",
    )
    for lender in (bob, cyd):
        assert received_bytes(ada, lender) - before["ada", lender.name] < 4e6


def test_what_a_task_raises_is_raised_here_with_the_workers_traceback(client: Client) -> None:
    def broken(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError) as raised:
        client.submit(broken, 0).result()
    assert "in broken" in str(raised.value.__cause__)
    with pytest.raises(ZeroDivisionError):
        client.run(broken, 0)


def test_a_worker_that_is_killed_is_replaced_and_the_result_is_right(client: Client, cluster: GridCluster) -> None:
    before = set(client.scheduler_info()["workers"])
    doomed = min(before)
    tasks = client.map(nap, range(100))

    client.run(lambda: threading.Timer(0.2, os._exit, (3,)).start(), workers=[doomed])

    assert client.gather(tasks) == list(range(100))
    until(lambda: doomed not in cluster.scheduler_info["workers"], "the dead worker is gone")
    client.wait_for_workers(2, timeout=peers.WAIT_S_MAX)
    assert len(set(client.scheduler_info(n_workers=-1)["workers"]) - before) == 1


# --- trust -----------------------------------------------------------------------------------------------------------


def test_no_pickle_comes_back_unless_its_sender_is_trusted(client: Client, trio: list[RealPeer]) -> None:
    with pytest.raises(CodecError, match="object of type object") as refused:
        client.submit(object).result()
    assert 'trust="pickle"' in refused.value.remedy

    ada = trio[0]
    with ada.grid() as grid:
        with pytest.raises(Usage, match="you do not trust bob"):
            GridCluster(grid, 1, mem=MEMORY, on=["bob"], trust="pickle")
        ada.ok("contacts", "add", "bob", "robert")
        ada.ok("contacts", "trust", "robert", "high")
        with (
            GridCluster(grid, 1, mem=MEMORY, trust="pickle", dashboard_address="127.0.0.1:0") as trusted,
            Client(trusted) as other,
        ):
            assert type(other.submit(object).result()) is object
            only = {grid.api.find_peer(name).peer for name in ("ada", "robert")}
            assert set(trusted.opening("croft://x/home", "0").only) == only


def test_a_worker_that_speaks_as_a_client_is_cut_off_and_runs_nothing_here(client: Client, tmp_path: Path) -> None:
    evil = pickle.dumps(Touch(tmp_path / "touched"))

    async def attack(op: str, dask_worker: Any) -> str:
        from distributed.comm.core import connect
        from distributed.protocol.serialize import ToPickle

        from croft.dask import comm

        (seat,) = comm._seats.values()
        seat.is_guarded = False  # as its lender could make it
        try:
            hostile = await connect(dask_worker.scheduler.address)
        finally:
            seat.is_guarded = True
        try:
            await hostile.write(
                {"op": op, "reply": True, "function": evil, "args": ToPickle(1) if op == "echo" else ()}
            )
            return str(await hostile.read())
        except OSError as error:
            return type(error).__name__
        finally:
            hostile.abort()

    worker = min(client.scheduler_info()["workers"])
    for op in ("run_function", "register-client", "echo"):
        assert client.run(attack, op, workers=[worker]) == {worker: "CommClosedError"}

    assert not (tmp_path / "touched").exists()
    assert client.submit(nap, 1, workers=[worker]).result() == 1


# --- beginning and end -----------------------------------------------------------------------------------------------


def test_a_cluster_scales_and_its_end_frees_every_lease(grid: croft.Grid, trio: list[RealPeer]) -> None:
    held = [lease.number for peer in trio for lease in peer.api.leases() if lease.stage != "ended"]
    with GridCluster(grid, 0, mem="200M", on=["ada"], dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster) as client:
            cluster.scale(2)
            client.wait_for_workers(2, timeout=peers.WAIT_S_MAX)
            assert client.gather(client.map(nap, range(10))) == list(range(10))
            cluster.scale(1)
            until(lambda: len(cluster.scheduler_info["workers"]) == 1, "one worker is let go")

    until(
        lambda: [lease.number for peer in trio for lease in peer.api.leases() if lease.stage != "ended"] == held,
        "no lease is left",
    )


def test_workers_find_the_packages_that_were_brought(grid: croft.Grid) -> None:
    packages = ["distributed", "dask"]
    with (
        GridCluster(grid, 1, mem=MEMORY, on=["ada"], environment=packages, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1, timeout=peers.WAIT_S_MAX)
        (place,) = client.run(lambda: __import__("distributed").__file__).values()

    assert "/environments/" in place


def test_a_cluster_that_cannot_be_says_why(grid: croft.Grid, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"it asks for 900\.0 GiB of memory"):
        GridCluster(grid, 1, mem="900G", on=["bob"], dashboard_address="127.0.0.1:0")
    with Grid(tmp_path) as nobody, pytest.raises(Unreachable, match="not running"):
        GridCluster(nobody, 1)
    with pytest.raises(Usage, match="no trust"):
        GridCluster(grid, 1, trust="everybody")
