"""`croft map`: one command line per item, each on some peer, in the manner of GNU parallel."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import click

from croft.cli import detached
from croft.cli.output import say, show_error
from croft.cli.work import CROFT_FAILED, exit_code, name_there, output_file, peer_ids, with_wasm
from croft.client.command import CommandEvents, run_command
from croft.client.environments_asked import environment_of
from croft.compute.environment import Environment
from croft.control.home import Home
from croft.control.quantities import duration_s, size_bytes
from croft.control.work_messages import CommandEnded, OpenCommandJob
from croft.errors import CroftError, Usage

SEPARATOR = ":::"
MARK = re.compile(r"\{(?:|\.|/|//|/\.|#)\}")
FAILURES_SHOWN_MAX = 101
"""As with GNU parallel: the exit code counts failed lines, up to 101."""
DEFAULT_JOBS = 64
ITEM_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class _Line:
    """One item's command, and what came of it."""

    number: int
    item: str
    argv: list[str]
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    printed: list[tuple[int, bytes]] = field(default_factory=list)
    code: int | None = None
    peer_name: str = ""
    seconds: float = 0.0


def substitute(word: str, item: str, number: int, *, is_quoted: bool = False) -> str:
    """Fills in `{}`, `{.}` (no extension), `{/}` (no folder), `{//}` (the folder), `{/.}` (neither), `{#}` (number).

    `is_quoted`: each value is written so that a shell takes it as one word.
    """
    path = PurePosixPath(item)
    values = {
        "{}": item,
        "{.}": item[: -len(path.suffix)] if path.suffix else item,
        "{/}": path.name,
        "{//}": str(path.parent),
        "{/.}": path.stem,
        "{#}": str(number),
    }
    # All at once: an item may itself contain what looks like a mark.
    return MARK.sub(lambda mark: shlex.quote(values[mark[0]]) if is_quoted else values[mark[0]], word)


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The command before `:::` and the items after it; None if there is no `:::`."""
    if SEPARATOR in words:
        at = list(words).index(SEPARATOR)
        return list(words[:at]), list(words[at + 1 :])
    return list(words), None


@click.command(name="map", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-j", "--jobs", "jobs_max", default=DEFAULT_JOBS, show_default=True, help="Lines under way at a time.")
@click.option("-k", "--keep-order", is_flag=True, help="Print in the order of the items.")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME[:FILE]",
    help="A file each line writes; marks are filled in.",
)
@click.option(
    "-i", "--input", "extra", multiple=True, metavar="FILE", help="A further file for every line; marks are filled in."
)
@click.option("--results", type=click.Path(file_okay=False), help="Write each line's output to files in this folder.")
@click.option("--joblog", type=click.Path(dir_okay=False), help="Write a line per finished item to this file.")
@click.option("--resume", is_flag=True, help="Skip items that --joblog says succeeded.")
@click.option("--on", multiple=True, metavar="PEER", help="Run on this peer; may be given again.")
@click.option("--avoid", multiple=True, metavar="PEER", help="Do not run on this peer.")
@click.option("--cpu", "cpus", default=1.0, show_default=True, help="Processors per line.")
@click.option("--mem", "memory", default="0", help="Memory per line, such as 2G.")
@click.option("--time", "time_limit", default="0", help="Kill a line after so long.")
@click.option("--priority", default=0, help="What of your own work goes first where room is short; higher does.")
@click.option(
    "--with",
    "sources",
    multiple=True,
    metavar="ENV",
    help="Python packages to bring: a lock file, a project's folder, wheels, or a name of what is installed here.",
)
@click.option("--detach", is_flag=True, help="Do not wait: print the id of a job that goes on; see `croft job`.")
@click.option("--name", default="", help="What to call the job, with --detach.")
@click.option("--delegates", type=int, help="So many peers carry it on while this one is off, with --detach.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def map_lines(
    jobs_max: int,
    keep_order: bool,
    outputs: tuple[str, ...],
    extra: tuple[str, ...],
    results: str | None,
    joblog: str | None,
    resume: bool,
    on: tuple[str, ...],
    avoid: tuple[str, ...],
    cpus: float,
    memory: str,
    time_limit: str,
    priority: int,
    sources: tuple[str, ...],
    detach: bool,
    name: str,
    delegates: int | None,
    words: tuple[str, ...],
) -> int:
    """Run a command for each item, each on some peer, with its file.

    \b
    croft map -- wc -l {} ::: *.txt
    croft map -o {.}.png -- convert {} {.}.png ::: *.svg
    find . -name '*.log' | croft map -k -- grep -c ERROR {}
    croft map -o {.}.small.jpg -- resize.wasm {} {.}.small.jpg ::: *.jpg

    Items come after `:::`, else from standard input, one per line. An item that is a file goes along. In the
    command, {} is the item, {.} without its extension, {/} without its folder, {//} its folder, {/.} without both,
    {#} its number.
    A command of one word is given to `sh -c`.
    """
    command, items = split_arguments(words)
    if not command:
        raise Usage("there is no command", remedy="Write it before `:::`, as in `croft map -- wc -l {} ::: *.txt`.")
    if resume and not joblog:
        raise Usage("--resume needs --joblog", remedy="Give the job log of the run that was cut short.")
    if jobs_max < 1:
        raise Usage("-j must be at least 1", remedy="Leave it out to let the peers decide.")
    detached.check(detach, outputs, name, delegates)
    if detach and (results or joblog or keep_order):
        raise Usage(
            "-k, --results and --joblog do not go with --detach", remedy="See `croft job --results` and `--fetch`."
        )
    finished = _finished(Path(joblog)) if resume and joblog else set()
    packages = None if detach else environment_of(Home.find(), sources)
    limits = _Limits(
        *(peer_ids(on), peer_ids(avoid), cpus, size_bytes(memory), duration_s(time_limit)), priority, packages
    )

    if detach:
        opening = limits.opening([], {})
        detached.submit(
            _commands(items, command, outputs, extra), opening, sources, name or " ".join(command), delegates
        )
        return 0

    async def lines() -> AsyncIterator[_Line]:
        number = 0
        async for item in _items(items):
            number += 1
            if item and item not in finished:
                yield _line(number, item, command, outputs, extra)

    run = _MapRun(limits, keep_order, Path(results) if results else None, Path(joblog) if joblog else None)
    failed = asyncio.run(run.all(lines(), jobs_max))
    return min(failed, FAILURES_SHOWN_MAX)


@dataclass(frozen=True, slots=True)
class _Limits:
    only: list[str]
    never: list[str]
    cpus: float
    memory_bytes: int
    time_s: float
    priority: int
    packages: Environment | None

    def opening(
        self,
        argv: list[str],
        variables: dict[str, str],
        inputs: Sequence[tuple[str, str]] = (),
        outputs: Sequence[tuple[str, str]] = (),
    ) -> OpenCommandJob:
        """A command under these limits."""
        return OpenCommandJob(
            *(argv, variables, list(inputs), list(outputs), self.only, self.never, self.cpus, self.memory_bytes),
            time_s_max=self.time_s,
            priority=self.priority,
            packages=self.packages,
        )


def _commands(
    given: Sequence[str] | None, command: list[str], outputs: tuple[str, ...], extra: tuple[str, ...]
) -> Iterator[detached.Command]:
    items = given if given is not None else (line.rstrip("\n") for line in sys.stdin)
    for number, item in enumerate((item for item in items if item), 1):
        line = _line(number, item, command, outputs, extra)
        yield detached.Command(item, line.argv, line.inputs, [there for there, _ in line.outputs])


async def _items(given: Sequence[str] | None) -> AsyncIterator[str]:
    """What was given after `:::`, else the lines of standard input as they come."""
    if given is not None:
        for item in given:
            yield item
        return
    if not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    # A pipe may stay silent for long: lines under way must go on, and Ctrl-C must be heard.
    reader = asyncio.StreamReader(limit=ITEM_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while received := await reader.readline():
        yield os.fsdecode(received).rstrip("\n")


def _line(number: int, item: str, command: list[str], outputs: tuple[str, ...], extra: tuple[str, ...]) -> _Line:
    has_mark = any(MARK.search(word) for word in command)
    is_file = Path(item).is_file()
    shown = name_there(item) if is_file else item
    if len(command) == 1 and (" " in command[0] or not has_mark):
        text = substitute(command[0], shown, number, is_quoted=True)
        argv = ["sh", "-c", text if has_mark else f"{text} {shlex.quote(shown)}"]
    else:
        argv = [substitute(word, shown, number) for word in command] + ([] if has_mark else [shown])
    inputs = [(str(Path(item).absolute()), shown)] if is_file else []
    for text in extra:
        path = Path(substitute(text, item, number))
        if not path.is_file():
            raise Usage(f"there is no file {path}", remedy="Check the path after -i.")
        inputs.append((str(path.absolute()), name_there(str(path))))
    # What a line writes stands beside its item here, and under the name that the command used there.
    pairs = [(substitute(text, shown, number), substitute(text, item, number)) for text in outputs]
    return _Line(number, item, argv, inputs, [(output_file(there)[0], output_file(here)[1]) for there, here in pairs])


def _finished(joblog: Path) -> set[str]:
    try:
        rows = joblog.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    fields = (row.split("\t", 4) for row in rows[1:])
    return {field[4] for field in fields if len(field) == 5 and field[3] == "0"}


class _MapRun:
    """The lines under way, and what is still to be printed."""

    def __init__(self, limits: _Limits, keep_order: bool, results: Path | None, joblog: Path | None) -> None:
        self._limits = limits
        self._keep_order = keep_order
        self._results = results
        self._joblog = joblog
        self._socket = Home.find().work_socket
        self._waiting: dict[int, _Line] = {}
        self._failed = 0
        self._order: list[int] = []

    async def all(self, lines: AsyncIterator[_Line], jobs_max: int) -> int:
        """Runs every line; returns how many failed. Interrupted, it kills those under way on their peers."""
        this = asyncio.current_task()
        assert this is not None, "run as a task"
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, this.cancel)
        under_way: set[asyncio.Task[None]] = set()
        try:
            async for line in lines:
                self._order.append(line.number)
                under_way.add(asyncio.create_task(self._one(line), name=f"map.{line.number}"))
                if len(under_way) >= jobs_max:
                    under_way = await self._reap(under_way)
            while under_way:
                under_way = await self._reap(under_way)
        except asyncio.CancelledError:
            say(f"interrupted: {len(under_way)} lines were under way and are cancelled")
            raise KeyboardInterrupt from None
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return self._failed

    async def _reap(self, under_way: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        done, rest = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return rest

    async def _one(self, line: _Line) -> None:
        opening = self._limits.opening(line.argv, {"CROFT_ITEM": line.item}, line.inputs, line.outputs)
        started = time.monotonic()
        try:
            ended: CommandEnded = await run_command(
                self._socket, with_wasm(opening), CommandEvents(lambda fd, data: line.printed.append((fd, data)))
            )
            line.code = exit_code(ended)
            line.peer_name = ended.peer_name
        except CroftError as error:
            show_error(f"{line.item}: {error.message}", error.remedy)
            line.code = CROFT_FAILED
        line.seconds = time.monotonic() - started
        if line.code:
            self._failed += 1
        self._finish(line)

    def _finish(self, line: _Line) -> None:
        self._write_log(line)
        if self._results is not None:
            self._write_results(self._results, line)
        elif not self._keep_order:
            _print(line)
        else:
            self._waiting[line.number] = line
            while self._order and self._order[0] in self._waiting:
                _print(self._waiting.pop(self._order.pop(0)))

    def _write_log(self, line: _Line) -> None:
        if self._joblog is None:
            return
        is_new = not self._joblog.exists()
        with self._joblog.open("a", encoding="utf-8") as file:
            if is_new:
                file.write("Seq\tPeer\tSeconds\tExit\tItem\n")
            file.write(f"{line.number}\t{line.peer_name}\t{line.seconds:.3f}\t{line.code}\t{line.item}\n")

    def _write_results(self, folder: Path, line: _Line) -> None:
        out, err = (b"".join(data for fd, data in line.printed if fd == wanted) for wanted in (1, 2))
        detached.write_printed(folder / str(line.number), line.item, line.code, out, err)


def _print(line: _Line) -> None:
    for descriptor, data in line.printed:
        stream = sys.stdout.buffer if descriptor == 1 else sys.stderr.buffer
        stream.write(data)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.flush()
