"""`croft run`: a command on some peer."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import signal
import sys
import tempfile
from pathlib import Path, PurePosixPath

import click
import msgspec

from croft.cli.output import say, show_error, style
from croft.client.detached_command import SIGNAL_EXIT_BASE
from croft.compute.worker_messages import NOT_FOUND_CODE
from croft.control.home import Home
from croft.control.quantities import duration_s, size_bytes
from croft.control.work_messages import CommandEnded, OpenCommandJob
from croft.errors import CroftError, Usage

CROFT_FAILED = 125
STDIN_NAME = ".croft-stdin"
WASM_SUFFIX = ".wasm"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="FILE[:NAME]", help="A file or folder the command reads."
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME[:FILE]",
    help="A file the command writes, or, as NAME/, a folder.",
)
@click.option("--on", multiple=True, metavar="PEER", help="Run on this peer; may be given again.")
@click.option("--avoid", multiple=True, metavar="PEER", help="Do not run on this peer.")
@click.option("--cpu", "cpus", default=1.0, show_default=True, help="Processors.")
@click.option("--mem", "memory", default="0", help="Memory, such as 2G; by default what the lender gives.")
@click.option("--disk", default="0", help="Room for files, such as 5G; by default what the lender gives.")
@click.option(
    "--stored",
    multiple=True,
    metavar="NAME[:NAME]",
    help="A stored file or folder; runs where it lies, if it can.",
)
@click.option("--need", "needs", multiple=True, metavar="DEVICE", help="Only where this device is lent, as `camera`.")
@click.option("--time", "time_limit", default="0", help="Kill it after so long, such as 10m.")
@click.option("--wait", "wait", default="", metavar="TIME", help="Wait at most so long for room; 0: not at all.")
@click.option("--priority", default=0, help="What of your own work goes first where room is short; higher does.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable for the command.")
@click.option(
    "--with",
    "sources",
    multiple=True,
    metavar="ENV",
    help="Python packages to bring: a lock file, a project's folder, wheels, or a name of what is installed here.",
)
@click.option("--fuel", default=0, metavar="N", help="What a WebAssembly program may burn, about one per instruction.")
@click.option("-I", "--stdin", "with_stdin", is_flag=True, help="The command reads what is piped into this one.")
@click.option("-v", "--verbose", is_flag=True, help="Say where it runs.")
@click.option("--detach", is_flag=True, help="Do not wait: print the id of a job that goes on; see `croft job`.")
@click.option("--name", default="", help="What to call the job, with --detach.")
@click.option("--delegates", type=int, help="So many peers carry it on while this one is off, with --detach.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    on: tuple[str, ...],
    avoid: tuple[str, ...],
    cpus: float,
    memory: str,
    disk: str,
    stored: tuple[str, ...],
    needs: tuple[str, ...],
    time_limit: str,
    wait: str,
    priority: int,
    variables: tuple[str, ...],
    sources: tuple[str, ...],
    fuel: int,
    with_stdin: bool,
    verbose: bool,
    detach: bool,
    name: str,
    delegates: int | None,
    command: tuple[str, ...],
) -> int:
    """Run a command on some peer: files in, live output, files out, its own exit code.

    \b
    croft run -- uname -a
    croft run -i data.csv -o sums.csv -- sh -c 'sort data.csv > sums.csv'
    journalctl | croft run -I -- sort -u
    croft run --stored film.mkv -- sha256sum film.mkv
    croft run --with numpy -i sums.py -- python sums.py
    croft run -i photo.jpg -o small.jpg -- resize.wasm photo.jpg small.jpg
    croft run --detach -i film.mkv -o film.mp4 -- ffmpeg -i film.mkv film.mp4

    The command starts in an empty folder that holds the inputs. Exit code 125 says that Croft failed, not the command.
    """
    from croft.cli import detached
    from croft.client.environments_asked import environment_of

    detached.check(detach, outputs, name, delegates)
    try:
        opening = OpenCommandJob(
            argv=list(command),
            environment=dict(_variable(text) for text in variables),
            inputs=input_files(inputs),
            outputs=[output_file(text) for text in outputs],
            only=peer_ids(on),
            never=peer_ids(avoid),
            cpus=cpus,
            memory_bytes=size_bytes(memory),
            disk_bytes=size_bytes(disk),
            time_s_max=duration_s(time_limit),
            needs=needs,
            stored=[stored_input(text) for text in stored],
            wait_s=duration_s(wait) if wait else math.inf,
            priority=priority,
            packages=None if detach else environment_of(Home.find(), sources),
        )
        if detach:
            stdin = sys.stdin.buffer.read() if with_stdin else b""
            one = detached.Command("", command, opening.inputs, [there for there, _ in opening.outputs], stdin)
            detached.submit([one], opening, sources, name or " ".join(command), delegates)
            return 0
        opening = with_wasm(opening, fuel)
        with tempfile.NamedTemporaryFile() if with_stdin else contextlib.nullcontext() as piped:
            if piped is not None:
                shutil.copyfileobj(sys.stdin.buffer, piped)
                piped.flush()
                opening = msgspec.structs.replace(
                    opening, inputs=[*opening.inputs, (piped.name, STDIN_NAME)], stdin=STDIN_NAME
                )
            ended = asyncio.run(_run(opening, verbose))
    except CroftError as error:
        show_error(error.message, error.remedy)
        return CROFT_FAILED
    return exit_code(ended)


async def _run(opening: OpenCommandJob, verbose: bool) -> CommandEnded:
    from croft.client.command import CommandEvents, run_command

    def on_output(descriptor: int, data: bytes) -> None:
        stream = sys.stdout.buffer if descriptor == 1 else sys.stderr.buffer
        stream.write(data)
        stream.flush()

    def on_start(name: str) -> None:
        if verbose:
            say(style(f"running on {name}", error=True, dim=True))

    job = asyncio.create_task(run_command(Home.find().work_socket, opening, CommandEvents(on_output, on_start)))
    # Cancelling lets the daemon know at once, so that the command dies on its peer before this program does.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, job.cancel)
    try:
        return await job
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def exit_code(ended: CommandEnded) -> int:
    """What to exit with: the command's own code; and says what else there is to say."""
    if ended.reason:
        remedy = "See the limits and the command itself: `croft run --help`."
        if ended.exit_code == NOT_FOUND_CODE:
            remedy = "Name a peer that has it: `--on PEER`; or send it along: `-i PROGRAM -- ./PROGRAM`."
        show_error(f"on {ended.peer_name}: {ended.reason}", remedy)
    for problem in ended.missing:
        show_error(f"an output is missing: {problem}", "The command must write it, by this name, into its own folder.")
    if ended.signal:
        return SIGNAL_EXIT_BASE + ended.signal
    if ended.exit_code == 0 and ended.missing:
        return 1
    return ended.exit_code


def with_wasm(opening: OpenCommandJob, fuel: int = 0) -> OpenCommandJob:
    """The same, with the WebAssembly program that its first word names, if it names one. Raises Usage."""
    program = opening.argv[0]
    if not program.endswith(WASM_SUFFIX):
        if fuel:
            raise Usage("only WebAssembly programs burn fuel", remedy="Bound other commands with `--time`.")
        return opening
    if opening.packages is not None or opening.needs:
        raise Usage("a WebAssembly program uses no packages and no devices", remedy="Leave out `--with` and `--need`.")
    name, inputs = name_there(program), opening.inputs
    if name not in {there for _, there in inputs}:
        if not Path(program).is_file():
            raise Usage(f"there is no file {program}", remedy="Name a WebAssembly program of this machine.")
        inputs = [*inputs, (str(Path(program).absolute()), name)]
    return msgspec.structs.replace(
        opening, argv=[name, *opening.argv[1:]], inputs=inputs, is_wasm=True, fuel=max(0, fuel)
    )


def peer_ids(names: tuple[str, ...]) -> list[str]:
    """The ids of peers named by people. Raises NotFound."""
    if not names:
        return []
    from croft.client.local_api import LocalApi

    api = LocalApi(Home.find().control_socket)
    return [api.find_peer(name).peer for name in names]


def input_files(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs (absolute path here, name there); folders with all that is in them. Raises Usage."""
    files: list[tuple[str, str]] = []
    for text in given:
        source, name = _source_and_name(text)
        if source.is_dir():
            for found in sorted(path for path in source.rglob("*") if path.is_file()):
                files.append((str(found.absolute()), str(PurePosixPath(name) / found.relative_to(source).as_posix())))
        elif source.is_file():
            files.append((str(source.absolute()), name))
        else:
            raise Usage(f"there is no file {source}", remedy="Check the path after -i.")
    return files


def stored_input(text: str) -> tuple[bytes, str]:
    """(name of a stored file, name there). Raises Usage."""
    from croft.client.stored_files import name_bytes

    name, _, there = text.partition(":")
    return name_bytes(name), name_there(there or PurePosixPath(name).name)


def output_file(text: str) -> tuple[str, str]:
    """(name there, absolute path here). Raises Usage if the folder here does not exist."""
    name, _, destination = text.partition(":")
    path = Path(destination or name)
    is_folder = name.endswith("/")
    if not path.absolute().parent.is_dir():
        raise Usage(f"there is no folder {path.parent}", remedy="Make it first; outputs are written into it.")
    return name_there(name) + ("/" if is_folder else ""), str(path.absolute())


def name_there(name: str) -> str:
    """A path inside the command's folder: relative paths stay, others keep their last part."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return path.name
    return str(path)


def _source_and_name(text: str) -> tuple[Path, str]:
    if not Path(text).exists() and ":" in text:
        source, _, name = text.rpartition(":")
        return Path(source), name_there(name)
    return Path(text), name_there(text)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Usage(f"`{text}` is not NAME=VALUE", remedy="Write it like --env LEVEL=3.")
    return name, value
