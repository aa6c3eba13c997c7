"""`croft demo`: five peers on this machine share real work, lose one of their number, and finish."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from croft.cli import demo_work as work
from croft.cli.output import done, is_coloured, print_table, say, style
from croft.client.grid import Grid
from croft.client.local_api import LocalApi
from croft.client.map_result import MapResult
from croft.control.home import Home
from croft.control.quantities import show_duration, show_size
from croft.errors import Failed, Usage
from croft.model.isolation import Grade
from croft.node.launch import running_process, start_in_background, stop

PEERS = 5
VICTIM = 3
"""Which peer is killed; not the first, which submits."""
KILL_AFTER_SHARE = 0.4
BATCH_BYTES = 192 << 10
FILE_BYTES_MAX = 2 << 20
CORPUS_BYTES_MAX = 512 << 20
JOIN_TIMEOUT_S = 20.0
PICTURE = "croft-demo.png"
QUERY = ("asyncio", "timeout", "cancel")
PREVIEW_COLUMNS = 72


@dataclass(slots=True)
class _Corpus:
    """The files to index."""

    names: list[str] = field(default_factory=list)
    batches: list[list[tuple[int, bytes]]] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class _Outcome:
    """What one run of the whole work gave."""

    partitions: list[bytes]
    picture: bytes
    seconds: float
    done_by: dict[str, int] = field(default_factory=dict)
    tasks: int = 0

    def digest(self) -> str:
        """Equal for equal results."""
        digest = hashlib.sha256(self.picture)
        for partition in self.partitions:
            digest.update(hashlib.sha256(partition).digest())
        return digest.hexdigest()


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--query", multiple=True, help="A word to look for in the index; may be given again.")
@click.option("--keep", is_flag=True, help="Leave the peers running, and say how to reach them.")
def demo(folder: str | None, query: tuple[str, ...], keep: bool) -> int:
    """Five peers on this machine index a library, draw a picture, lose a peer, and finish.

    Without FOLDER they read the source files of Python's standard library and of the installed packages.
    """
    corpus = _read(Path(folder) if folder else None)
    title = style("Croft demo", error=True, bold=True)
    say(f"{title}: {len(corpus.names):,} files, {show_size(corpus.size)} to index, and a picture to draw")
    base = Path(tempfile.mkdtemp(prefix="croft-demo-"))
    try:
        homes = [Home.find(base / f"peer-{number}") for number in range(1, PEERS + 1)]
        names = _start(homes)
        return _show(homes, names, corpus, [word.lower() for word in query])
    finally:
        if keep:
            say(f"The peers go on. Look at one: CROFT_HOME={base}/peer-1 croft status")
        else:
            with ThreadPoolExecutor(PEERS) as pool:
                list(pool.map(stop, [Home.find(base / f"peer-{number}") for number in range(1, PEERS + 1)]))
            shutil.rmtree(base, ignore_errors=True)


# --- the peers -------------------------------------------------------------------------------------------------------


def _start(homes: list[Home]) -> list[str]:
    """Starts the peers and joins them by real invitations; returns their names."""
    from croft.adapters.sandbox import best_sandbox

    isolation = best_sandbox(allows_unconfined=True).isolation()
    grade = isolation.grade if not isolation.grade.holds(Grade.B) else Grade.B
    flags = {
        "bind": "127.0.0.1",
        "lend.cpus": "1",
        "sandbox.required_grade": str(grade),
        "sandbox.own_devices_grade": str(grade),
    }
    started = time.monotonic()
    with ThreadPoolExecutor(PEERS) as pool:
        list(pool.map(lambda home: start_in_background(home, flags), homes))
        apis = [LocalApi(home.control_socket) for home in homes]
        lines = [apis[0].invite(is_spoken=False).line for _ in homes[1:]]
        list(pool.map(lambda pair: pair[0].join(pair[1]), zip(apis[1:], lines, strict=True)))
    _await_links(apis)
    names = [api.status().name for api in apis]
    done(f"{PEERS} peers running", f"joined in {show_duration(time.monotonic() - started)}: {', '.join(names)}")
    done("Isolation", f"grade {isolation.grade}" + (f": {isolation.reason}" if isolation.reason else ""))
    if not isolation.grade.holds(Grade.B):
        say("  All five peers are yours, so the demo accepts this grade; a peer that lends to others would not.")
    return names


def _await_links(apis: list[LocalApi]) -> None:
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while time.monotonic() < deadline:
        if all(sum(peer.link == "direct" for peer in api.peers()) == PEERS - 1 for api in apis):
            return
        time.sleep(0.1)
    raise Failed(
        "the peers did not find each other", remedy="Run it again; if that fails too, report it with the logs."
    )


def _kill(home: Home, name: str) -> str:
    """Kills a peer without warning; what to say about it."""
    process = running_process(home)
    if process is None:
        return f"{name} had ended by itself"
    os.kill(process, signal.SIGKILL)
    return f"✗ {name} killed (SIGKILL): what it had in hand goes to the others"


# --- the work --------------------------------------------------------------------------------------------------------


def _read(folder: Path | None) -> _Corpus:
    """All source files, in batches for one task each. Raises Usage if there is nothing to read."""
    corpus = _Corpus()
    batch: list[tuple[int, bytes]] = []
    filled = 0
    for path, shown in _files(folder):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if not text or len(text) > FILE_BYTES_MAX or b"\0" in text[:1024] or corpus.size + len(text) > CORPUS_BYTES_MAX:
            continue
        batch.append((len(corpus.names), text))
        corpus.names.append(shown)
        corpus.size += len(text)
        filled += len(text)
        if filled >= BATCH_BYTES:
            corpus.batches.append(batch)
            batch, filled = [], 0
    if batch:
        corpus.batches.append(batch)
    if not corpus.batches:
        raise Usage(f"there are no text files in {folder}", remedy="Name a folder with some: `croft demo FOLDER`.")
    return corpus


def _files(folder: Path | None) -> Iterator[tuple[Path, str]]:
    if folder is not None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            yield path, str(path.relative_to(folder))
        return
    packages = Path(sysconfig.get_path("purelib"))
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts and "dist-packages" not in path.parts:
            yield path, str(path.relative_to(library))
    for path in sorted(packages.rglob("*.py")):
        yield path, str(path.relative_to(packages))


def _show(homes: list[Home], names: list[str], corpus: _Corpus, query: list[str]) -> int:
    with Grid(homes[0].state) as grid:
        alone = _run(grid, corpus, "one peer alone", on=[names[1]])
        kill = partial(_kill, homes[VICTIM], names[VICTIM])
        shared = _run(grid, corpus, f"{PEERS} peers, one dies", at_share=kill)
    reference = _run_here(corpus)
    is_equal = shared.digest() == reference.digest() == alone.digest()
    counted = sum(shared.done_by.values())
    is_once = counted == shared.tasks
    say()
    _show_picture(shared.picture)
    _show_answer(shared.partitions, corpus, query)
    say()
    _show_table(names, shared, killed=names[VICTIM])
    say()
    say(f"  {'one peer alone':<28}{show_duration(alone.seconds):>8}")
    gain = f"{alone.seconds / shared.seconds:.1f} × as fast as one peer"
    say(f"  {f'{PEERS} peers, one killed':<28}{show_duration(shared.seconds):>8}   {gain}")
    say(f"  {'one process, no peers':<28}{show_duration(reference.seconds):>8}   ({os.cpu_count()} processors here)")
    if is_equal:
        done("Results equal", "index and picture are the same as in one process, byte for byte")
    else:
        say(f"{style('✗', error=True, fg='red')} The results differ from those of one process.")
    if is_once:
        done("Each task counted once", f"{counted:,} of {shared.tasks:,}")
    else:
        say(f"{style('✗', error=True, fg='red')} {counted:,} outcomes for {shared.tasks:,} tasks.")
    say()
    say("Now with machines of your own: `croft up` here, `croft invite`, and the line it prints on the other one.")
    say("Then: `croft run -- hostname`, or in Python: `croft.connect().map(f, items)`.")
    return 0 if is_equal and is_once else 1


def _run(
    grid: Grid, corpus: _Corpus, title: str, on: Iterable[str] = (), at_share: Callable[[], str] | None = None
) -> _Outcome:
    tiles = work.tile_starts()
    total = len(corpus.batches) + len(tiles) + work.PARTITIONS
    outcome = _Outcome([], b"", 0.0, tasks=total)
    started = time.monotonic()
    with _progress(title, total) as (advance, tell):
        finished = 0

        def collect(results: MapResult[Any], count: int) -> list[Any]:
            nonlocal finished, at_share
            values: list[Any] = [None] * count
            for index, value in results.as_completed():
                values[index] = value
                finished += 1
                advance()
                if at_share and finished >= KILL_AFTER_SHARE * total:
                    tell(at_share())
                    at_share = None
            for name, done_count in results.done_by.items():
                outcome.done_by[name] = outcome.done_by.get(name, 0) + done_count
            return values

        peers = list(on)
        batches = corpus.batches
        indexed = collect(grid.map(work.index_files, batches, on=peers, name="demo: index"), len(batches))
        columns = [[parts[at] for parts in indexed] for at in range(work.PARTITIONS)]
        merged = grid.map(work.merge_partition, columns, on=peers, name="demo: merge")
        outcome.partitions = collect(merged, len(columns))
        rendered = grid.map(work.render_rows, tiles, on=peers, name="demo: picture")
        outcome.picture = b"".join(collect(rendered, len(tiles)))
    outcome.seconds = time.monotonic() - started
    return outcome


def _run_here(corpus: _Corpus) -> _Outcome:
    started = time.monotonic()
    indexed = [work.index_files(batch) for batch in corpus.batches]
    partitions = [work.merge_partition([parts[at] for parts in indexed]) for at in range(work.PARTITIONS)]
    picture = b"".join(work.render_rows(first) for first in work.tile_starts())
    return _Outcome(partitions, picture, time.monotonic() - started)


# --- what is shown ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Yields what to call per finished task, and how to say something meanwhile. A bar on a terminal, else a line."""
    if not sys.stderr.isatty():
        say(f"  {title}: {total:,} tasks …")
        yield lambda: None, lambda text: say(f"  {text}")
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda: progress.advance(bar), lambda text: progress.console.print(f"  [red]{text}[/red]", soft_wrap=True)


def _show_picture(picture: bytes) -> None:
    path = Path(PICTURE).absolute()
    try:
        path.write_bytes(work.png(picture))
    except OSError as error:
        say(f"  The picture cannot be written to {path}: {error.strerror}")
    else:
        done("Picture", str(path))
    if not is_coloured(error=True):
        return
    colours = work.palette()
    rows = PREVIEW_COLUMNS * work.HEIGHT // work.WIDTH // 2 * 2
    for row in range(0, rows, 2):
        cells = []
        for column in range(PREVIEW_COLUMNS):
            x = column * work.WIDTH // PREVIEW_COLUMNS
            upper, lower = (colours[picture[(r * work.HEIGHT // rows) * work.WIDTH + x]] for r in (row, row + 1))
            cells.append(f"\x1b[38;2;{upper[0]};{upper[1]};{upper[2]};48;2;{lower[0]};{lower[1]};{lower[2]}m▀")
        say("  " + "".join(cells) + "\x1b[0m")


def _show_answer(partitions: list[bytes], corpus: _Corpus, query: list[str]) -> None:
    words = query or [word for word in QUERY if work.search(partitions, [word])]
    words = words or work.frequent_words(partitions, len(QUERY))
    hits = work.search(partitions, words)
    say(f"  Which files speak most of {', '.join(repr(word) for word in words)}?")
    for number, count in hits:
        say(f"  {count:>6,} ×  {corpus.names[number]}")
    if not hits:
        say("  None has all of these words.")


def _show_table(names: list[str], shared: _Outcome, killed: str) -> None:
    rows = []
    for name in names:
        count = shared.done_by.get(name, 0)
        share = count / shared.tasks
        note = "killed midway" if name == killed else ("asked for the work, and took part" if name == names[0] else "")
        rows.append([name, f"{count:,}", "█" * round(share * 30), f"{share * 100:.0f} %", note])
    print_table(["PEER", "TASKS", "SHARE", "", ""], rows)
