"""What a capability may be besides a Python function: a command, an HTTP endpoint of this machine, or a folder.

Each becomes a function with annotations, so that all else is the same for every kind. Commands are run without a shell:
an argument never becomes more than one, and text that would pass for an option is refused. A command whose program is
WebAssembly runs in a process that sees the files among its arguments, and nothing else of this machine.
"""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from croft.errors import Usage
from croft.twins.capability_source import Source

TYPES: Final[dict[str, Any]] = {
    "text": str,
    "int": int,
    "number": float,
    "bool": bool,
    "bytes": bytes,
    "file": Path,
    "json": Any,
}
RETURNS: Final[dict[str, Any]] = {
    "text": str,
    "bytes": bytes,
    "json": Any,
    "lines": Iterator[str],
    "none": None,
}
IN_COMMANDS: Final = frozenset({"text", "int", "number", "file"})
"""Types of which an argument of a command can be."""
SAID_CHARS_MAX: Final = 1_000
RESULT_BYTES_MAX: Final = 256 << 20
NAMES_MAX: Final = 10_000
NAME_SHOWN_CHARS_MAX: Final = 80
HTTP_TIMEOUT_S: Final = 3_600.0
WASM: Final = ".wasm"
WASM_MEMORY_BYTES: Final = 1 << 30
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

_PARAMETER = re.compile(r"(?P<name>[a-z_][a-z0-9_]*)(:(?P<type>[a-z]+))?(=(?P<default>.*))?", re.ASCII | re.DOTALL)
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
"""A parameter in a word of a command; doubled braces are braces."""

Parameter = tuple[str, str, str | None]
"""Name, type, and default as text."""


def function_of(source: Source) -> Callable[..., Any]:
    """A function that runs a command, asks an endpoint, or reads a folder. Raises Usage."""
    if source.returns not in RETURNS:
        raise Usage(f"`{source.returns}` is nothing to return", remedy=f"Write one of {', '.join(RETURNS)}.")
    if source.command:
        return _command(source)
    if source.data:
        return _data(source)
    if source.returns == "lines":
        raise Usage("an endpoint gives no lines", remedy="Write one of text, bytes, json or none.")
    return _endpoint(source)


def _shaped(run: Callable[[dict[str, Any]], Any], parameters: Sequence[Parameter], returns: str) -> Callable[..., Any]:
    """A function with these parameters: name, type, default."""
    made = []
    for name, kind, default in parameters:
        value = inspect.Parameter.empty if default is None else _default(name, kind, default)
        made.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=TYPES[kind]))
    defaults = {one.name: one.default for one in made if one.default is not inspect.Parameter.empty}

    def function(**values: Any) -> Any:
        return run({**defaults, **values})

    function.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]  # what inspect looks for
    function.__annotations__ = {**{one.name: one.annotation for one in made}, "return": RETURNS[returns]}
    return function


def _default(name: str, kind: str, text: str) -> Any:
    if kind == "text":
        return text
    try:
        return msgspec.convert(msgspec.json.decode(text), TYPES[kind])
    except msgspec.MsgspecError:
        raise Usage(f"`{text}` is no {kind}", remedy=f"Correct the default of `{name}`.") from None


def parameter(text: str) -> Parameter:
    """Name, type and default of `name:type=default`. Raises Usage."""
    found = _PARAMETER.fullmatch(text)
    kind = found["type"] or "text" if found else ""
    if found is None or kind not in TYPES:
        raise Usage(f"`{text}` is no parameter", remedy=f"Write it like page:file or zoom:int=1: {', '.join(TYPES)}.")
    return found["name"], kind, found["default"]


# --- commands --------------------------------------------------------------------------------------------------------


def _command(source: Source) -> Callable[..., Any]:
    parameters: dict[str, Parameter] = {}
    for word in source.command:
        for place in filter(None, _PLACE.findall(word)):
            name, kind, default = parameter(place)
            known = parameters.get(name)
            if kind not in IN_COMMANDS:
                raise Usage(f"`{name}` is {kind}, and goes on no command line", remedy="Use text, int, number or file.")
            if known is None or ":" in place or "=" in place:
                parameters[name] = name, kind, default
    returns, start = source.returns, _start_wasm if source.command[0].endswith(WASM) else _start

    def run(values: dict[str, Any]) -> Any:
        if returns == "lines":
            return _lines(source, start, values)
        with start(source, values, subprocess.PIPE) as process:
            out, err = process.communicate()
        _check(source, process.returncode, err)
        return _read(out, returns)

    return _shaped(run, list(parameters.values()), returns)


def _filled(word: str, values: dict[str, Any]) -> str:
    def fill(found: re.Match[str]) -> str:
        return str(values[parameter(found[1])[0]]) if found[1] else found[0][0]

    filled = _PLACE.sub(fill, word)
    if filled.startswith("-") and not word.startswith("-"):
        raise ValueError(f"`{filled[:40]}` would pass for an option")
    if "\0" in filled:
        raise ValueError("a zero byte goes on no command line")
    return filled


@contextlib.contextmanager
def _start(source: Source, values: dict[str, Any], err: int) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command; it ends with the context at the latest."""
    argv = [_filled(word, values) for word in source.command]
    with _process(argv, source.folder or None, err) as process:
        yield process


@contextlib.contextmanager
def _start_wasm(source: Source, values: dict[str, Any], err: int) -> Iterator[subprocess.Popen[bytes]]:
    """The same for WebAssembly, in a folder of its own with the files among its arguments."""
    with tempfile.TemporaryDirectory(prefix="croft-wasm-") as folder, contextlib.ExitStack() as stack:
        seen = {name: _brought(value, Path(folder)) for name, value in values.items()}
        program = stack.enter_context((Path(source.folder or ".") / source.command[0]).open("rb"))
        words = [_filled(word, seen) for word in source.command]
        limits = ["0", str(WASM_MEMORY_BYTES), str(program.fileno())]
        argv = [sys.executable, "-sEP", source.wasm_runner, *limits, *words]
        yield stack.enter_context(_process(argv, folder, err, pass_fds=[program.fileno()]))


@contextlib.contextmanager
def _process(
    argv: Sequence[str], folder: str | None, err: int, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen(argv, cwd=folder, stdin=nothing, stdout=pipe, stderr=err, pass_fds=pass_fds)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _brought(value: Any, folder: Path) -> Any:
    """A file, copied into the folder, by its name there; anything else as it is."""
    if not isinstance(value, Path):
        return value
    place = folder / value.name
    if place.exists():
        raise ValueError(f"two files are called `{value.name[:NAME_SHOWN_CHARS_MAX]}`")
    shutil.copyfile(value, place)
    return value.name


def _lines(
    source: Source,
    start: Callable[[Source, dict[str, Any], int], AbstractContextManager[subprocess.Popen[bytes]]],
    values: dict[str, Any],
) -> Iterator[str]:
    with start(source, values, subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.decode(errors="replace").rstrip("\n")
        _check(source, process.wait(), b"")


def _check(source: Source, code: int, said: bytes) -> None:
    if code:
        text = said.decode(errors="replace").strip()[-SAID_CHARS_MAX:]
        raise RuntimeError(f"{source.command[0]} exited with {code}{': ' if text else ''}{text}")


def _read(data: bytes, returns: str) -> Any:
    match returns:
        case "text":
            return data.decode(errors="replace")
        case "json":
            return json.loads(data)
        case "bytes":
            return data
    return None


# --- data ------------------------------------------------------------------------------------------------------------


def _data(source: Source) -> Callable[..., Any]:
    root = Path(source.data).resolve()
    if not root.is_dir():
        raise Usage(f"{source.data} is no folder", remedy="Name a folder whose files others may read.")

    def read(values: dict[str, Any]) -> Any:
        """What a name leads to; links count for what they lead to."""
        path = (root / values["name"]).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"`{values['name'][:NAME_SHOWN_CHARS_MAX]}` is not in it")
        if path.is_dir():
            found = sorted(path.iterdir())[:NAMES_MAX]
            return [f"{one.relative_to(root)}{'/' if one.is_dir() else ''}" for one in found]
        if not path.is_file():
            raise FileNotFoundError(f"there is no `{values['name'][:NAME_SHOWN_CHARS_MAX]}`")
        if path.stat().st_size > RESULT_BYTES_MAX:
            raise ValueError(f"`{path.name}` takes more than can be carried at once")
        return path

    return _shaped(read, [("name", "text", "")], "json")


# --- endpoints -------------------------------------------------------------------------------------------------------


def _endpoint(source: Source) -> Callable[..., Any]:
    place = urlsplit(source.http)
    if place.scheme != "http" or place.hostname not in LOOPBACK:
        raise Usage(f"{source.http} is no endpoint of this machine", remedy="Write it like http://127.0.0.1:8000/path.")
    parameters = [parameter(text) for text in source.parameters]
    for name, kind, _ in parameters:
        if kind in ("file", "bytes"):
            raise Usage(f"`{name}` is {kind}, which JSON cannot carry", remedy="Offer a Python function instead.")

    def ask(values: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection(str(place.hostname), place.port or 80, timeout=HTTP_TIMEOUT_S)
        try:
            path = (place.path or "/") + (f"?{place.query}" if place.query else "")
            body = json.dumps(values)
            connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read(RESULT_BYTES_MAX + 1)
        finally:
            connection.close()
        if len(data) > RESULT_BYTES_MAX:
            raise RuntimeError("it answers with more than can be carried")
        if not 200 <= answer.status < 300:
            text = data.decode(errors="replace")[:SAID_CHARS_MAX]
            raise RuntimeError(f"it answers {answer.status} {answer.reason}: {text}")
        return _read(data, source.returns)

    return _shaped(ask, parameters, source.returns)
