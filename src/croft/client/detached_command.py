"""Commands as tasks of a detached job: what runs in the box, and what of it is kept until somebody reads it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from croft.compute.worker_messages import CANNOT_START_CODE, NOT_FOUND_CODE

PRINTED_BYTES_MAX: Final = 8 << 20
"""Of each stream; of more, the end is kept."""
FILES_BYTES_MAX: Final = 256 << 20
"""Of all outputs of one command."""
FILES_MAX: Final = 10_000
SIGNAL_EXIT_BASE: Final = 128

File = tuple[str, bool, bytes]
"""Name inside the command's folder, whether it is executable, content."""


@dataclass(frozen=True)
class CommandDone:
    """What came of a command. `item`: of `croft map`. `missing`: for each output that is not there, why."""

    item: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    files: list[File]
    missing: list[str]


def run_command(
    item: str,
    argv: Sequence[str],
    variables: dict[str, str],
    inputs: Sequence[File],
    stdin: bytes,
    outputs: Sequence[str],
) -> CommandDone:
    """Runs a command in a new folder that holds `inputs`; `outputs`: files, or folders as `NAME/`, to bring home."""
    with (
        tempfile.TemporaryDirectory() as there,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        folder = Path(there)
        for name, is_executable, content in inputs:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            place.chmod(0o755 if is_executable else 0o644)
        given.write(stdin)
        given.seek(0)
        environment = {**os.environ, **variables}
        try:
            ended = subprocess.run(argv, cwd=folder, env=environment, stdin=given, stdout=out, stderr=err)
            code = ended.returncode if ended.returncode >= 0 else SIGNAL_EXIT_BASE - ended.returncode
        except OSError as error:
            err.write(f"cannot start {argv[0]}: {error.strerror}\n".encode())
            err.flush()
            code = NOT_FOUND_CODE if isinstance(error, FileNotFoundError) else CANNOT_START_CODE
        files, missing = _outputs(folder, outputs)
        return CommandDone(item, code, _end_of(out), _end_of(err), files, missing)


def _outputs(folder: Path, names: Sequence[str]) -> tuple[list[File], list[str]]:
    files: list[File] = []
    missing: list[str] = []
    size = 0
    for name in names:
        found = _below(folder / name) if name.endswith("/") else [folder / name]
        if not found:
            missing.append(f"{name} holds no file")
        for path in found:
            shown = path.relative_to(folder).as_posix()
            if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
                missing.append(f"{shown} is no file of the command")
                continue
            status = path.stat()
            size += status.st_size
            if size > FILES_BYTES_MAX or len(files) >= FILES_MAX:
                missing.append(f"{shown} and more: they are above {FILES_BYTES_MAX:,} bytes or {FILES_MAX:,} files")
                return files, missing
            files.append((shown, bool(status.st_mode & stat.S_IXUSR), path.read_bytes()))
    return files, missing


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _end_of(file: IO[bytes]) -> bytes:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), PRINTED_BYTES_MAX, max(0, size - PRINTED_BYTES_MAX))


def ending(code: int) -> str:
    """How a command ended, in words."""
    if code <= SIGNAL_EXIT_BASE:
        return f"exited with {code}"
    try:
        return f"was ended by {signal.Signals(code - SIGNAL_EXIT_BASE).name}"
    except ValueError:
        return f"exited with {code}"
