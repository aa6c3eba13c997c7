"""Commands that go on without the terminal: `--detach` of `croft run` and `croft map`, and what `croft job` fetches."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click
import msgspec

from croft.cli.output import say
from croft.cli.work import WASM_SUFFIX
from croft.client.detached_command import CommandDone, File, ending, run_command
from croft.compute.worker_messages import ARGUMENT_BYTES_MAX
from croft.control.work_messages import OpenCommandJob
from croft.errors import TooLarge, Usage

if TYPE_CHECKING:
    from croft.client.durable import Done

NAME_CHARS_MAX = 60


@dataclass(frozen=True, slots=True)
class Command:
    """One command that is to be handed over. `stdin`: what it reads."""

    item: str
    argv: Sequence[str]
    inputs: Sequence[tuple[str, str]]
    outputs: Sequence[str]
    stdin: bytes = b""


def submit(
    commands: Iterable[Command], opening: OpenCommandJob, sources: Sequence[str], name: str, delegates: int | None
) -> None:
    """Hands commands over as one job, under the limits of `opening`; prints its id, once all is on this peer's disk.

    Raises Usage, TooLarge, Unreachable, Refused.
    """
    from croft.client.grid import Grid

    if opening.stored or opening.disk_bytes:
        raise Usage("--stored and --disk do not go with --detach", remedy="Leave them out, or wait for the command.")
    with Grid() as grid:
        job = grid.starmap(
            run_command,
            _calls(commands, opening.environment),
            name=name[:NAME_CHARS_MAX],
            detach=True,
            delegates=delegates,
            on=opening.only,
            avoid=opening.never,
            cpus=max(1, math.ceil(opening.cpus)),
            memory=opening.memory_bytes,
            time=opening.time_s_max,
            needs=opening.needs,
            priority=opening.priority,
            environment=sources,
        )
    click.echo(job.id)
    say(f"See it: `croft job {job.id}`; what it printed: `--results`; its files too: `--fetch FOLDER`.")


def check(is_detached: bool, outputs: Iterable[str], name: str, delegates: int | None) -> None:
    """Raises Usage for options that do not go together."""
    if not is_detached:
        if name or delegates is not None:
            raise Usage("--name and --delegates are for jobs that go on", remedy="Give --detach too.")
        return
    for text in outputs:
        if ":" in text:
            raise Usage(
                f"with --detach there is no place for `{text}` yet",
                remedy="Write only what it is called there; `croft job JOB --fetch FOLDER` writes it here.",
            )


def _calls(commands: Iterable[Command], environment: dict[str, str]) -> Iterator[tuple[object, ...]]:
    for command in commands:
        if command.argv[0].endswith(WASM_SUFFIX):
            raise Usage("WebAssembly programs cannot be detached", remedy="Leave out --detach.")
        variables = {**environment, "CROFT_ITEM": command.item} if command.item else environment
        inputs: list[File] = []
        size = len(command.stdin)
        for here, there in command.inputs:
            path = Path(here)
            status = path.stat()
            size += status.st_size
            if size > ARGUMENT_BYTES_MAX - (1 << 20):
                raise TooLarge(
                    f"the inputs of a detached command are above {ARGUMENT_BYTES_MAX >> 20} MiB with {here}",
                    remedy="Leave out --detach: then files go along at any size.",
                )
            inputs.append((there, bool(status.st_mode & stat.S_IXUSR), path.read_bytes()))
        yield command.item, list(command.argv), variables, inputs, command.stdin, list(command.outputs)


def show(one: Done, done: CommandDone, folder: Path | None, line: dict[str, Any] | None) -> bool:
    """Prints what came of a command, as JSON where `line` is begun, or writes it below `folder`; whether it failed."""
    if line is not None:
        files = [name for name, _, _ in done.files]
        stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        line["result"] = {"item": done.item, "exit": done.exit_code, "stdout": stdout, "stderr": stderr, "files": files}
        click.echo(msgspec.json.encode(line))
    elif folder is None:
        click.echo(done.stdout, nl=False)
        click.echo(done.stderr, nl=False, err=True)
    if folder is not None:
        _write_all(folder / str(one.task + 1), done, f"task {one.task} on {one.peer_name}")
    for problem in done.missing:
        say(f"task {one.task} on {one.peer_name}: an output is missing: {problem}")
    if done.exit_code:
        say(f"task {one.task} on {one.peer_name} {ending(done.exit_code)}")
    return bool(done.exit_code or done.missing)


def _write_all(place: Path, done: CommandDone, where: str) -> None:
    """Names that lead out of `place` are left out, and told: they come from a peer."""
    write_printed(place, done.item, done.exit_code, done.stdout, done.stderr)
    for name, is_executable, content in done.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
            say(f"{where} calls an output {name[:NAME_CHARS_MAX]!r}: it is left out")
            continue
        _write(place / "files" / path, content)
        if is_executable:
            (place / "files" / path).chmod(0o755)


def write_printed(place: Path, item: str, exit_code: int | None, stdout: bytes, stderr: bytes) -> None:
    """Writes into `place` what a command printed, how it ended, and the item that it was run for."""
    for name, content in (
        ("stdout", stdout),
        ("stderr", stderr),
        ("exit", f"{exit_code}\n".encode()),
        ("item", f"{item}\n".encode()),
    ):
        _write(place / name, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
