"""Measures backups at five peers, any three of which give them back, beside restic and borg to a local folder.

python -m bench.backup [--json FILE] [--megabytes N]

The tree is made up: files as of source code, some thousands of bytes each, that compress as text does. Six daemons on
loopback share this machine, and seal, code and sync what the rivals only write. Where restic or borg are not installed
(`apt-get install restic borgbackup`), their figures are left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from bench.figures import report
from bench.storage import KEEP, Village
from croft.client.backups import Backups

FILE_BYTES = 16_000
FILES_PER_FOLDER = 20
WORDS = 4_000
CHANGED_SHARE = 0.01


def make_tree(folder: Path, megabytes: int) -> list[Path]:
    """Files of so many megabytes in all."""
    random = Random(1)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz_", k=random.randrange(2, 12))) for _ in range(WORDS)]
    marks = [" ", " ", " ", "(", ")", ".", " = ", ":\n    ", "\n", "\n\n"]
    made: list[Path] = []
    left = megabytes << 20
    while left > 0:
        place = folder / f"{len(made) // (50 * FILES_PER_FOLDER)}" / f"{len(made) // FILES_PER_FOLDER}"
        place.mkdir(parents=True, exist_ok=True)
        size = min(left, 200 + int(random.expovariate(1 / FILE_BYTES)))
        chosen = random.choices(words, k=size // 6 + 1)
        text = "".join(word + mark for word, mark in zip(chosen, random.choices(marks, k=len(chosen)), strict=True))
        path = place / f"{len(made)}.py"
        path.write_bytes(text.encode()[:size])
        left -= size
        made.append(path)
    return made


def change(files: Sequence[Path]) -> None:
    """A line more in a hundredth of the files."""
    for path in Random(2).sample(files, max(1, int(CHANGED_SHARE * len(files)))):
        with path.open("ab") as file:
            file.write(os.urandom(30).hex().encode() + b"\n")


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(*command: str) -> None:
    environment = {**os.environ, "RESTIC_PASSWORD": "bench", "BORG_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def rivals(base: Path, tree: Path) -> dict[str, Callable[[], None]]:
    """Those that are installed, each with a repository of its own."""
    found: dict[str, Callable[[], None]] = {}
    if shutil.which("restic"):
        place = str(base / "restic")
        run("restic", "init", "--repo", place)
        found["restic"] = lambda: run("restic", "backup", "--repo", place, str(tree))
    if shutil.which("borg"):
        repository = str(base / "borg")
        os.environ["BORG_BASE_DIR"] = str(base / "borg-home")
        os.environ["BORG_PASSPHRASE"] = "bench"
        run("borg", "init", "--encryption", "repokey-blake2", repository)
        names = iter(range(100))
        found["borg"] = lambda: run("borg", "create", "-C", "zstd,1", f"{repository}::{next(names)}", str(tree))
    return found


def measure(megabytes: int) -> dict[str, float]:
    """Every figure, from fresh homes."""
    village = Village()
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    figures: dict[str, float] = {}
    try:
        tree = base / "tree"
        files = make_tree(tree, megabytes)
        backups = Backups(village.homes[0], village.owner)
        backups.add(tree, keep=KEEP)
        others = rivals(base, tree)
        figures["files"] = len(files)
        sent: list[int] = []

        def round_of(what: str) -> None:
            took = timed(lambda: sent.append(backups.run("tree").sent_bytes))
            figures[f"{what}, s"] = took
            for name, work in others.items():
                theirs = timed(work)
                figures[f"{what}, {name}, s"] = theirs
                figures[f"{what}, of {name}'s speed"] = theirs / took

        round_of("first run")
        figures["first run, MB/s"] = (megabytes << 20) / 1e6 / figures["first run, s"]
        round_of("unchanged run")
        change(files)
        round_of("1 % changed")
        figures["1 % changed, sent of the first run"] = sent[-1] / sent[0]
        figures["restored, MB/s"] = (megabytes << 20) / 1e6 / timed(lambda: backups.restore("tree", base / "back"))
        subprocess.run(["diff", "-r", str(tree), str(base / "back/tree")], check=True)
    finally:
        village.stop()
        shutil.rmtree(base, ignore_errors=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.backup")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--megabytes", type=int, default=2_000)
    options = parser.parse_args(arguments)
    report(measure(options.megabytes), options.json)


if __name__ == "__main__":
    main()
