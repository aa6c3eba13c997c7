"""`croft pipeline`: items through the capabilities of several people."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from croft.cli.group import Group
from croft.cli.output import ago, counted, done, print_json, print_table, say, style
from croft.client.capability import Known, bound_text, read_item
from croft.client.local_api import LocalApi
from croft.client.pipelines import Pipeline, PipelineRun, Stage
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import show_size
from croft.errors import BadArgument, CapabilityFailed, CroftError, Failed, Usage

EXAMPLE = "croft pipeline run 'tapes/*.wav | transcribe | translate to=en'"
WATCH_EVERY_S = 0.5
WAITS_ASKED_S = 1.0
STDIN = "stdin"


@dataclass
class Plan:
    """What people wrote: where items come from, and each stage as (capability, whose, arguments)."""

    source: str
    stages: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    name: str = ""
    retries: int = 0


@click.group(cls=Group, alone="list")
def pipeline() -> None:
    """Send items through the capabilities of several people; what one stage made goes straight to the next."""


@pipeline.command()
@click.argument("what")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write each result into this folder.")
@click.option("--name", default="", help="What to call it.")
@click.option("--retries", default=None, type=int, help="How often a stage may fail on an item by itself (0).")
@click.option("--detach", is_flag=True, help="Do not wait: print the id; see `croft pipeline show`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: how it ended.")
def run(what: str, output: Path | None, name: str, retries: int | None, detach: bool, as_json: bool) -> None:
    """Run WHAT: a source and stages, joined by `|`, or a file of TOML.

    The source is a pattern of files, or `stdin` for the lines of standard input. A stage is a capability, `@` and whose
    it is to be if that matters, and arguments: `tapes/*.wav | transcribe@maria language=de | index`. The item becomes
    the first parameter that has no argument.
    """
    plan = _plan(what)
    api = _api()
    stages = Pipeline(Home.find().work_socket, api)
    for capability, of, arguments in plan.stages:
        stages = stages.then(capability, of=of, **_typed(stages.known(capability, of), arguments))
    sources, items = _items(plan.source, stages.stages[0])
    running = stages.run(items, name=name or plan.name, retries=plan.retries if retries is None else retries)
    if detach:
        if as_json:
            print_json("", running.status())
        else:
            click.echo(running.id)
            say(f"See it: `croft pipeline show {running.id} --watch`.")
        return
    failed = _take(running, sources, output, as_json)
    status = running.status()
    if as_json:
        print_json("", status)
    elif not failed:
        done("Through", f"{counted(status.done, 'item')}, {counted(len(status.stages), 'stage')}")
    if failed:
        raise Failed(f"{failed} of {status.items} items did not get through", remedy="See why above.")


@pipeline.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_pipelines(as_json: bool) -> None:
    """Pipelines of yours, newest first."""
    found = _api().pipelines()
    if as_json:
        print_json("pipelines", found)
        return
    rows = [
        [one.pipeline, one.name or "–", one.state, f"{one.done}/{one.items}", str(one.failed), ago(one.created_at)]
        for one in found
    ]
    none = "None yet. Run one: `croft pipeline run --help`."
    print_table(["ID", "NAME", "STATE", "DONE", "FAILED", "SINCE"], rows, none=none)


@pipeline.command()
@click.argument("name")
@click.option("--watch", is_flag=True, help="Go on until it is over.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch a line at a time.")
def show(name: str, watch: bool, as_json: bool) -> None:
    """How the stages of a pipeline stand, and at whom."""
    api = _api()
    lines = 0
    while True:
        status = api.pipeline(name)
        if as_json:
            print_json("", status)
        else:
            if lines and sys.stdout.isatty():
                click.echo(f"\033[{lines}F\033[J", nl=False)
            shown = picture(status)
            click.echo("\n".join(shown))
            lines = len(shown)
        if not watch or status.ended_at is not None:
            return
        time.sleep(WATCH_EVERY_S)


@pipeline.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write each result into this folder.")
def results(name: str, output: Path | None) -> None:
    """The results of a pipeline, in the order of its items; waits for those that are still under way."""
    api = _api()
    running = PipelineRun(Home.find().work_socket, api, api.pipeline(name).pipeline)
    if failed := _take(running, [], output, False):
        raise Failed(f"{failed} items did not get through", remedy="See why above.")


@pipeline.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cancel(name: str, as_json: bool) -> None:
    """End a pipeline; what is through stays."""
    ended = _api().cancel_pipeline(name)
    if as_json:
        print_json("", ended)
        return
    done("Cancelled", f"{ended.done} of {ended.items} items are through")


@pipeline.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rm(name: str, as_json: bool) -> None:
    """Forget a pipeline, and drop its results wherever they are."""
    gone = _api().forget_pipeline(name)
    if as_json:
        print_json("", gone)
        return
    done("Forgotten", gone.pipeline)


def picture(status: schema.Pipeline) -> list[str]:
    """A pipeline in a few lines, a stage each."""
    lines = [
        style(f"{status.name or status.pipeline}  {status.state}", bold=True)
        + f"  {status.done} of {status.items} through"
        + (f", {status.failed} failed" if status.failed else "")
    ]
    width = max(len(stage.name) for stage in status.stages)
    for stage in status.stages:
        at = ", ".join(f"{peer.name} {peer.running}▸{peer.done}" for peer in stage.peers)
        missing = "nobody offers it now" if stage.is_missing else ""
        lines.append(
            f"  {stage.name.ljust(width)}  {stage.waiting:>5} waiting  {stage.running:>3} running  {stage.done:>5} done"
            f"  {at or missing or '–'}"
        )
    if status.kept_bytes:
        kept = ", ".join(f"{name} {show_size(size)}" for name, size in status.kept_bytes.items())
        lines.append(f"  kept on the way: {kept}")
    if status.waiting_for_consent:
        lines.append(f"  {status.waiting_for_consent} wait for the consent of an owner")
    lines += [f"  {style('failed:', fg='red')} {error}" for error in status.errors]
    return lines


# --- what people wrote -----------------------------------------------------------------------------------------------


def _plan(what: str) -> Plan:
    if what.endswith(".toml") and "|" not in what:
        return _plan_of_file(Path(what))
    source, *stages = (part.strip() for part in _split(what))
    if not stages or not all(stages) or not source:
        raise Usage("a pipeline is a source and stages", remedy=f"Write it like {EXAMPLE}")
    plan = Plan(source)
    for stage in stages:
        capability, *arguments = shlex.split(stage)
        name, _, of = capability.partition("@")
        plan.stages.append((name, of, dict(map(_argument, arguments))))
    return plan


def _plan_of_file(path: Path) -> Plan:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Usage(f"{path} cannot be read: {error}", remedy=f"Or write it in a line: {EXAMPLE}") from None
    try:
        stages = [(stage["call"], stage.get("of", ""), dict(stage.get("with", {}))) for stage in content["stage"]]
        plan = Plan(content["items"], stages, content.get("name", path.stem), int(content.get("retries", 0)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Usage(
            f"{path} does not say all of a pipeline: {error}",
            remedy="It needs `items`, and `call` in each `[[stage]]`.",
        ) from None
    return plan


def _split(what: str) -> list[str]:
    """At each `|` that is not in quotes."""
    lexer = shlex.shlex(what, posix=False, punctuation_chars="|")
    lexer.whitespace_split = True
    parts, words = [], list[str]()
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise Usage(f"`{what}`: {error}", remedy="Close the quotes.") from None
    for word in tokens:
        if word == "|":
            parts.append(" ".join(words))
            words = []
        else:
            words.append(word)
    return [*parts, " ".join(words)]


def _argument(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Usage(f"`{text}` is no argument", remedy="Write arguments like `language=de`.")
    return name, value


def _typed(known: Known, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the capability's parameters want them; those of a file of TOML have their types already."""
    written = {name: value for name, value in arguments.items() if isinstance(value, str)}
    return {**arguments, **bound_text(known, written)}


def _items(source: str, first: Stage) -> tuple[Sequence[str], Iterable[Any]]:
    """What the items are called, as far as that is known, and the items."""
    if source == STDIN:
        return [], (read_item(first.known, line.rstrip("\n"), first.parameter) for line in sys.stdin)
    pattern = Path(source)
    anchor = pattern.anchor or "."
    files = sorted(path for path in Path(anchor).glob(str(pattern.relative_to(pattern.anchor))) if path.is_file())
    if not files:
        raise Usage(f"there is no file `{source}`", remedy="The source is a pattern of files, or `stdin` for lines.")
    return [path.name for path in files], (
        bound_text(first.known, {first.parameter: f"@{path}"})[first.parameter] for path in files
    )


# --- results ---------------------------------------------------------------------------------------------------------


def _take(running: PipelineRun, sources: Sequence[str], output: Path | None, is_quiet: bool) -> int:
    """Shows or writes results in the order of the items; returns how many failed."""
    failed = 0
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with _telling_why_it_waits(running):
        for number, outcome in running.outcomes(in_order=True):
            name = sources[number] if number < len(sources) else f"{number:05}"
            if isinstance(outcome, CroftError):
                failed += 1
                say(f"{style('✗', error=True, fg='red')} {name}: {_reason(outcome)}")
            elif output is not None:
                _write(output, name, outcome)
            elif not is_quiet:
                click.echo(_text(outcome))
    return failed


@contextlib.contextmanager
def _telling_why_it_waits(running: PipelineRun) -> Iterator[None]:
    """Says, once for each reason, what a pipeline waits for that does not come by itself."""
    is_over = threading.Event()

    def tell() -> None:
        told: set[str] = set()
        while not is_over.wait(WAITS_ASKED_S):
            try:
                waits = _waits(running.status())
            except CroftError:
                return
            for wait in waits:
                if wait not in told:
                    say(wait)
            told.update(waits)

    thread = threading.Thread(target=tell, name="pipeline waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _waits(status: schema.Pipeline) -> list[str]:
    missing = [stage.name for stage in status.stages if stage.is_missing]
    waits = [f"Nobody offers `{name}` now; waiting for somebody who does …" for name in missing]
    if status.waiting_for_consent:
        at = {peer.name for stage in status.stages for peer in stage.peers if peer.running}
        waits.append(f"Waiting for the owner of {' or '.join(sorted(at))} to allow it …")
    return waits


def _reason(outcome: CroftError) -> str:
    return outcome.message if isinstance(outcome, CapabilityFailed | BadArgument) else str(outcome)


def _write(folder: Path, name: str, value: Any) -> None:
    if isinstance(value, Path):
        shutil.move(value, folder / value.name)
    elif isinstance(value, bytes | bytearray | memoryview):
        (folder / name).write_bytes(value)
    else:
        (folder / f"{name}.txt").write_text(f"{_text(value)}\n")


def _text(value: Any) -> str:
    import msgspec

    if isinstance(value, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({show_size(len(value))}: take it with -o)"
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError):
        return repr(value)


def _api() -> LocalApi:
    return LocalApi(Home.find().control_socket)
