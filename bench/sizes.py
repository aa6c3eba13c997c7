"""Measures tasks of other kinds than `bench.tasks`: short ones, many workers, large arrays, a worker that is killed.

    python -m bench.sizes [--json FILE] [--only croft,pool,dask,ray]

Same engines, same two peers. An engine that fails shows nothing in that row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.tasks import ENGINES, WARM_UP_TASKS, Croft, Engine, noop

SHORT_S = 0.001
SHORT_TASKS = 3_000
NAP_S = 0.01
MANY_WORKERS = 16
MANY_TASKS = 4_000
MANY_NOOPS = 100_000
ARRAY_BYTES = 100_000_000
ARRAY_ROUNDS = 3
ARRAY_TASKS = 10
LONG_S = 0.1
LONG_TASKS = 200
KILL_AFTER_S = 4.0
FAILED = float("nan")


def short(number: int) -> int:
    end = time.perf_counter() + SHORT_S
    while time.perf_counter() < end:
        continue
    return number


def nap(number: int) -> int:
    time.sleep(NAP_S)
    return number


def long(number: int) -> int:
    time.sleep(LONG_S)
    return number


def size_of(array: Any) -> int:
    return int(array.nbytes)


def make(size: int) -> Any:
    import numpy

    return numpy.ones(size // 8)


def measure(kind: type[Engine]) -> dict[str, float]:
    """Every figure of one engine."""
    figures: dict[str, float] = {}
    before = set(processes())
    with running(kind(2)) as engine:
        figures["idle, its processes MB"] = memory_mb(set(processes()) - before)
        figures["1 ms tasks, 2 workers, efficiency"] = efficiency(engine, short, SHORT_S, SHORT_TASKS)
        figures["10 ms tasks, 2 workers, efficiency"] = efficiency(engine, nap, NAP_S, MANY_TASKS // 8)
        if kind is Croft:
            figures["no-op tasks/s, submit 100,000"] = MANY_NOOPS / timed(
                lambda: engine.submit_all(noop, range(MANY_NOOPS))
            )
        figures |= arrays(engine)
    with running(kind(MANY_WORKERS)) as engine:
        figures["10 ms tasks, 16 workers, efficiency"] = efficiency(engine, nap, NAP_S, MANY_TASKS)
    figures["a worker killed midway, extra time"] = killed(kind)
    return figures


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    engine.start()
    try:
        engine.submit_all(noop, range(WARM_UP_TASKS))
        yield engine
    finally:
        engine.stop()


def efficiency(engine: Engine, function: Callable[[int], int], task_s: float, tasks: int) -> float:
    """Which part of the time the workers spend on the tasks themselves."""
    engine.map_all(function, range(engine.workers * 4))
    return task_s * tasks / engine.workers / timed(lambda: engine.map_all(function, range(tasks)))


def arrays(engine: Engine) -> dict[str, float]:
    import numpy

    array = numpy.random.default_rng(1).random(ARRAY_BYTES // 8)
    there, back, all_ten = [], [], []
    for number in range(ARRAY_ROUNDS):
        array[0] = number  # another one each time: what is there already costs nothing
        there.append(timed(lambda: engine.wait_for([engine.submit_one(size_of, array)])))
        back.append(timed(lambda: engine.wait_for([engine.submit_one(make, ARRAY_BYTES)])))
        array[0] = -1 - number
        all_ten.append(timed(lambda: engine.wait_for([engine.submit_one(size_of, array) for _ in range(ARRAY_TASKS)])))
    return {
        "array of 100 MB as argument s": statistics.median(there),
        "array of 100 MB as result s": statistics.median(back),
        "array of 100 MB to ten tasks s": statistics.median(all_ten),
    }


def killed(kind: type[Engine]) -> float:
    """How much longer 200 tasks of 100 ms take when a worker dies after some seconds; NaN if they do not all come."""
    ideal = LONG_S * LONG_TASKS / 2
    with running(kind(2)) as engine:
        timer = threading.Timer(KILL_AFTER_S, engine.kill_a_worker)
        timer.start()
        try:
            started = time.perf_counter()
            results = engine.wait_for([engine.submit_one(long, number) for number in range(LONG_TASKS)])
            elapsed = time.perf_counter() - started
        except Exception as error:
            print(f"{engine.name}: {type(error).__name__} when a worker is killed", flush=True)
            return FAILED
        finally:
            timer.cancel()
        assert sorted(results) == list(range(LONG_TASKS)), "an engine lost tasks"
        return elapsed / ideal - 1


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def memory_mb(numbers: set[int]) -> float:
    """Proportional set sizes, so that what processes share counts once."""
    total_kb = 0
    for number in numbers:
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb / 1000


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="croft,pool,dask,ray")
    options = parser.parse_args(arguments)
    figures: dict[str, dict[str, float]] = {}
    for key in options.only.split(","):
        kind = ENGINES[key]
        figures[kind.name] = measure(kind)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures[kind.name].items())
        print(f"{kind.name}: {shown}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    # Functions of `__main__` travel by value everywhere; imported by name they travel as they would for a user.
    from bench import sizes

    sizes.main(sys.argv[1:])
