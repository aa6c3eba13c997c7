"""Measures what a user waits for, and what an idle peer costs.

python -m bench.daemon [--json FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figures import report
from croft.client.grid import connect
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.node.launch import running_process, stop

IDLE_S = 10.0


def croft(home: Path, *words: str) -> float:
    """Runs the program; the seconds it took."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "croft.cli.main", *words],
        env={**os.environ, "CROFT_HOME": str(home)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def processor_s(process: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(process: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(rounds: int) -> dict[str, float]:
    """Every figure, from fresh homes."""
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    first, second = base / "first", base / "second"
    flags = ["--set", "bind=127.0.0.1", "--set", "lend.cpus=1"]
    figures: dict[str, float] = {}
    try:
        figures["first `croft up` s"] = croft(first, "up", *flags)
        ups, statuses = [], []
        for _ in range(rounds):
            croft(first, "down")
            ups.append(croft(first, "up", *flags))
            statuses += [croft(first, "status") for _ in range(3)]
        figures["`croft up` to ready s"] = statistics.median(ups)
        figures["`croft status` s"] = statistics.median(statuses)
        figures["`croft --version` s"] = statistics.median([croft(first, "--version") for _ in range(3 * rounds)])
        croft(second, "up", *flags)
        api = LocalApi(Home.find(first).control_socket)
        line = api.invite(is_spoken=False).line
        started = time.perf_counter()
        LocalApi(Home.find(second).control_socket).join(line)
        grid = connect(second)
        inviter = api.status().name
        while not any(peer.name == inviter and peer.link == "direct" for peer in grid.peers()):
            time.sleep(0.01)
        assert list(grid.map(abs, [-1], on=[inviter])) == [1]
        figures["join to first result s"] = time.perf_counter() - started
        grid.close()
        for home, name in ((second, "idle peer"), (first, "idle peer with a warm box")):
            process = running_process(Home.find(home))
            assert process is not None, "the peer runs"
            before = processor_s(process)
            time.sleep(IDLE_S)
            figures[f"{name}, share of a core"] = (processor_s(process) - before) / IDLE_S
            figures[f"{name}, resident MB"] = resident_mb(process)
    finally:
        stop(Home.find(first))
        stop(Home.find(second))
        shutil.rmtree(base, ignore_errors=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    figures = measure(options.rounds)
    report(figures, options.json)


if __name__ == "__main__":
    main()
