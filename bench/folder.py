"""Measures a folder of very many files: listing it, adding one more to it, reading one of them.

python -m bench.folder [--json FILE] [--files N]

An owner and one holder on this machine; the files are tiny, so that it is the list of them that counts. Listing is done
by the Python API, and by `croft ls` with its start; each new file is on the holder's disk, and in the list, before it
counts.
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
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import report
from bench.peers import Pair
from croft.client.local_api import LocalApi
from croft.client.stored_files import StoredFiles

KEEP = "copies=1"
TIMES = 9
RARELY = 3


def median_s(work: Callable[[], object], times: int) -> float:
    """How long something takes, mostly."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def measure(count: int) -> dict[str, float]:
    """Every figure, from fresh homes."""
    pair, base = Pair(lent_slots=1), Path(tempfile.mkdtemp(prefix="croft-bench-"))
    try:
        folder = base / "folder"
        folder.mkdir()
        for number in range(count):
            (folder / f"picture-{number:06}.jpg").write_bytes(str(number).encode())
        files = StoredFiles(pair.consumer, LocalApi(pair.consumer.control_socket))
        started = time.perf_counter()
        files.put(folder, keep=KEEP)
        figures = {f"{count:,} files put, s": time.perf_counter() - started}
        environment = {**os.environ, "CROFT_HOME": str(pair.consumer.state)}
        command = [sys.executable, "-m", "croft.cli.main", "ls", "folder"]

        def command_line() -> None:
            shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            assert len(shown.splitlines()) >= count

        def add() -> None:
            added.append(f"folder/new-{len(added)}.jpg")
            files.put(b"new", added[-1], keep=KEEP)

        added: list[str] = []
        figures["listed by Python, s"] = median_s(lambda: len(files.ls("folder")), RARELY)
        figures["listed by `croft ls`, s"] = median_s(command_line, RARELY)
        figures["one more added, ms"] = 1e3 * median_s(add, TIMES)
        figures["one of them read, ms"] = 1e3 * median_s(lambda: files.get("folder/picture-000777.jpg"), TIMES)
        figures["one of them listed, ms"] = 1e3 * median_s(lambda: files.ls("folder/picture-000777.jpg"), TIMES)
        assert len(files.ls("folder")) == count + len(added)
    finally:
        pair.stop()
        shutil.rmtree(base, ignore_errors=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args(arguments)
    report(measure(options.files), options.json)


if __name__ == "__main__":
    main()
