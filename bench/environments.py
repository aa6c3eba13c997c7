"""Measures what an environment adds to the first result of a job: wheels fetched, in the cache, unpacked, all warm.

python -m bench.environments [--json FILE] [--rounds N]

Each first result is that of a new box: `memory` differs from round to round. What a box without an environment takes is
subtracted. The environment is made of a project of 100 small modules, which is packed as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench.figures import report
from bench.peers import Pair
from croft.adapters.box_process import remove_folder
from croft.client.grid import Grid, connect
from croft.node.launch import start_in_background, stop

MODULES = 100
MODULE_LINES = 60
MEMORY_MIB = 64
SLOTS = 2


def value(_: int) -> int:
    """Imports from the environment, if there is one."""
    try:
        from benchproject.m0 import f0  # type: ignore[import-not-found]  # of the project below

        return int(f0())
    except ImportError:
        return -1


def make_project(folder: Path) -> None:
    """A project of many small modules."""
    package = folder / "src" / "benchproject"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "benchproject"\nversion = "1.0"\n', encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")
    for number in range(MODULES):
        lines = "".join(f"def f{line}():\n    return {number} + {line}\n" for line in range(MODULE_LINES))
        (package / f"m{number}.py").write_text(lines, encoding="utf-8")


def first_result_s(grid: Grid, memory_mib: int, environment: str) -> float:
    """From the call to the first result."""
    started = time.perf_counter()
    (told,) = grid.map(value, [1], memory=f"{memory_mib}M", environment=environment)
    elapsed_s = time.perf_counter() - started
    assert told == (0 if environment else -1)
    return elapsed_s


def measure(rounds: int) -> dict[str, float]:
    """Every figure, as medians."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        make_project(project)
        pair = Pair(SLOTS)
        wheels, built = (pair.lender.environments / name for name in ("wheels", "built"))
        try:
            with connect(pair.consumer.state) as grid:
                for _ in range(rounds):
                    for name, emptied in (
                        ("nothing there: fetched and built, s", [wheels, built]),
                        ("wheels in the cache: built, s", [built]),
                        ("built before: a new box, s", []),
                    ):
                        # Boxes that use an environment end with the lender's daemon.
                        stop(pair.lender)
                        _empty(*emptied)
                        start_in_background(pair.lender, {"bind": "127.0.0.1", "lend.cpus": str(SLOTS)})
                        first_result_s(grid, MEMORY_MIB, "")  # the two are linked again
                        plain = first_result_s(grid, MEMORY_MIB + 1, "")
                        added = first_result_s(grid, MEMORY_MIB + 2, str(project)) - plain
                        taken.setdefault(name, []).append(added)
                warm = [first_result_s(grid, MEMORY_MIB + 2, str(project)) for _ in range(rounds * 3)]
        finally:
            pair.stop()
    figures = {name: statistics.median(values) for name, values in taken.items()}
    return {**figures, "box that is warm, whole job, s": statistics.median(warm)}


def _empty(*folders: Path) -> None:
    for entry in [entry for folder in folders for entry in folder.iterdir()]:
        if entry.is_dir():
            remove_folder(entry)
        else:
            entry.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    report(measure(given.rounds), given.json)


if __name__ == "__main__":
    main()
