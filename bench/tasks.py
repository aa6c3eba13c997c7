"""Measures tasks through the whole stack beside ProcessPoolExecutor, Dask and Ray, in the same run.

    python -m bench.tasks [--json FILE] [--rounds N] [--only croft,pool,dask,ray]

Croft runs as two peers, each a daemon of its own: a consumer that lends nothing, and a lender of two slots; tasks go
program → consumer → iroh → lender → box → and back. The others run two workers. Each figure is the median of the
rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

WORKERS = 2
NOOP_TASKS = 10_000
SLEEP_S = 0.01
SLEEP_TASKS = 600
LONE_TASKS = 300
WARM_UP_TASKS = 200


def noop(number: int) -> int:
    return number


def nap(number: int) -> int:
    time.sleep(SLEEP_S)
    return number


def own_process() -> int:
    return os.getpid()


class Engine(ABC):
    """Something that runs tasks on so many workers."""

    name: str

    def __init__(self, workers: int = WORKERS) -> None:
        self.workers = workers

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def submit_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        """One task per item, submitted one by one; the results in order."""

    def map_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        """The engine's own way for many items, one task each."""
        return self.submit_all(function, items)

    @abstractmethod
    def submit_one(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One task, as this engine's own kind of future, which `wait_for` takes."""

    def wait_for(self, futures: list[Any]) -> list[Any]:
        """The results of `submit_one`."""
        return [future.result() for future in futures]

    @abstractmethod
    def kill_a_worker(self) -> None:
        """SIGKILL to one of its worker processes."""

    @abstractmethod
    def stop(self) -> None: ...


def _results(futures: list[Future[int]]) -> list[int]:
    wait(futures)
    return [future.result() for future in futures]


class Pool(Engine):
    name = "ProcessPoolExecutor"

    def start(self) -> None:
        self.pool = ProcessPoolExecutor(self.workers)
        _results([self.pool.submit(nap, 0) for _ in range(self.workers * 4)])

    def submit_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        return _results([self.pool.submit(function, item) for item in items])

    def map_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        return list(self.pool.map(function, items))

    def submit_one(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.pool.submit(function, *arguments)

    def kill_a_worker(self) -> None:
        os.kill(next(iter(self.pool._processes)), signal.SIGKILL)

    def stop(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Dask(Engine):
    name = "Dask distributed"

    def start(self) -> None:
        from distributed import Client, LocalCluster

        logging.getLogger("distributed").setLevel(logging.ERROR)
        self.cluster = LocalCluster(
            n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        )
        self.client = Client(self.cluster)

    def submit_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        gathered: list[int] = self.client.gather([self.client.submit(function, item, pure=False) for item in items])
        return gathered

    def map_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        gathered: list[int] = self.client.gather(self.client.map(function, list(items), pure=False))
        return gathered

    def submit_one(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments, pure=False)

    def wait_for(self, futures: list[Any]) -> list[Any]:
        gathered: list[Any] = self.client.gather(futures)
        return gathered

    def kill_a_worker(self) -> None:
        os.kill(next(iter(self.client.run(os.getpid).values())), signal.SIGKILL)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()


class Ray(Engine):
    name = "Ray"

    def start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray: Any = ray
        self.functions: dict[Any, Any] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="ray-")
        ray.init(
            address="local",
            num_cpus=self.workers,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=self.folder.name,
        )

    def submit_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        remote = self.functions.setdefault(function, self.ray.remote(function))
        gathered: list[int] = self.ray.get([remote.remote(item) for item in items])
        return gathered

    def submit_one(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.functions.setdefault(function, self.ray.remote(function)).remote(*arguments)

    def wait_for(self, futures: list[Any]) -> list[Any]:
        gathered: list[Any] = self.ray.get(futures)
        return gathered

    def kill_a_worker(self) -> None:
        os.kill(self.ray.get(self.submit_one(own_process)), signal.SIGKILL)

    def stop(self) -> None:
        self.ray.shutdown()
        self.folder.cleanup()


class Croft(Engine):
    name = "Croft"

    def start(self) -> None:
        from bench.peers import Pair
        from croft.client.grid import Grid

        self.pair = Pair(lent_slots=self.workers)
        self.grid = Grid(self.pair.consumer.state)
        self.executor = self.grid.executor()
        self.lender = self.pair.lender_name

    def submit_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        return _results([self.executor.submit(function, item) for item in items])

    def map_all(self, function: Callable[[int], int], items: Sequence[int]) -> list[int]:
        return list(self.grid.map(function, items))

    def submit_one(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.executor.submit(function, *arguments)

    def kill_a_worker(self) -> None:
        # The first process of the box: it is everything else's parent.
        os.kill(min(processes_of("compute/worker.py")), signal.SIGKILL)

    def stop(self) -> None:
        self.grid.close()
        self.pair.stop()


ENGINES: dict[str, type[Engine]] = {"croft": Croft, "pool": Pool, "dask": Dask, "ray": Ray}


def processes_of(text: str) -> list[int]:
    """Processes of Python whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"python" in words[0] and any(text.encode() in word for word in words[1:]):
                    found.append(int(entry.name))
    return found


def measure(engine: Engine, rounds: int) -> dict[str, float]:
    """Every figure of one engine."""
    started = time.perf_counter()
    engine.start()
    try:
        return _measure(engine, rounds, started)
    finally:
        engine.stop()


def _measure(engine: Engine, rounds: int, started: float) -> dict[str, float]:
    assert engine.submit_all(noop, [1]) == [1]
    figures = {"start to first result s": time.perf_counter() - started}
    engine.submit_all(noop, range(WARM_UP_TASKS))
    submits, maps, naps, lone = [], [], [], []
    for _ in range(rounds):
        submits.append(NOOP_TASKS / _timed(lambda: engine.submit_all(noop, range(NOOP_TASKS)), NOOP_TASKS))
        maps.append(NOOP_TASKS / _timed(lambda: engine.map_all(noop, range(NOOP_TASKS)), NOOP_TASKS))
        ideal = SLEEP_S * SLEEP_TASKS / WORKERS
        naps.append(ideal / _timed(lambda: engine.map_all(nap, range(SLEEP_TASKS)), SLEEP_TASKS))
        for _ in range(LONE_TASKS // rounds):
            lone.append(_timed(lambda: engine.submit_all(noop, [7]), 1) * 1000)
    figures["no-op tasks/s, submit"] = statistics.median(submits)
    figures["no-op tasks/s, map"] = statistics.median(maps)
    figures["10 ms tasks, efficiency"] = statistics.median(naps)
    figures["one task, p50 ms"] = statistics.median(lone)
    figures["one task, p90 ms"] = sorted(lone)[len(lone) * 9 // 10]
    return figures


def _timed(work: Callable[[], list[int]], expected: int) -> float:
    started = time.perf_counter()
    results = work()
    elapsed = time.perf_counter() - started
    assert len(results) == expected, "an engine lost tasks"
    return elapsed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="croft,pool,dask,ray")
    options = parser.parse_args(arguments)
    figures: dict[str, dict[str, float]] = {}
    for key in options.only.split(","):
        engine = ENGINES[key]()
        figures[engine.name] = measure(engine, options.rounds)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures[engine.name].items())
        print(f"{engine.name}: {shown}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    # Functions of `__main__` travel by value everywhere; imported by name they travel as they would for a user.
    from bench import tasks

    tasks.main(sys.argv[1:])
