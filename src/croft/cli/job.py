"""`croft jobs` and `croft job`: what was submitted, how it stands, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from croft.cli.output import ago, done, print_json, print_table, say, style
from croft.control.home import Home
from croft.control.quantities import show_duration
from croft.control.schema import SCHEMA
from croft.errors import CroftError, Usage

if TYPE_CHECKING:
    from croft.client.durable import Done
    from croft.control import schema

WATCH_EVERY_S = 0.5
LABEL_LENGTH_SHOWN = 40


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def jobs(as_json: bool) -> None:
    """Jobs submitted from this machine: those under way first, then the newest."""
    from croft.client.local_api import LocalApi

    submitted = LocalApi(Home.find().control_socket).jobs()
    if as_json:
        print_json("jobs", submitted)
        return
    rows = [
        [
            one.job,
            one.kind,
            one.label[:LABEL_LENGTH_SHOWN],
            one.state,
            f"{one.done} of {one.tasks}",
            str(one.failed),
            ago(one.created_at),
        ]
        for one in submitted
    ]
    none = "None yet. Start one: `croft run -- hostname`."
    print_table(["JOB", "KIND", "NAME", "STATE", "DONE", "FAILED", "STARTED"], rows, none=none)


@click.command()
@click.argument("name", metavar="JOB")
@click.option("--results", is_flag=True, help="Print what each task returned, in the order of the items.")
@click.option(
    "--fetch",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write what each command printed and made into this folder.",
)
@click.option("--watch", is_flag=True, help="Go on until the job is over.")
@click.option("--cancel", is_flag=True, help="End it, here and on its peers; what is done can still be read.")
@click.option("--forget", is_flag=True, help="End it if it runs, and drop its results from the disk.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --results or --watch a line for each.")
def job(name: str, results: bool, fetch: Path | None, watch: bool, cancel: bool, forget: bool, as_json: bool) -> int:
    """How a job stands, by its id, the beginning of its id, or its name.

    \b
    croft job wordcount --watch
    croft job 3f2a --results --json > results.jsonl
    croft job film --fetch made --watch

    Detached jobs are kept on this machine's disk, results and all, until they are forgotten. Exit code 1 says that
    one of the results shown is a failure, or that the job was cancelled.
    """
    from croft.client.local_api import LocalApi

    reads = results or fetch is not None
    if (reads, watch and not reads, cancel, forget).count(True) > 1 or (results and fetch is not None):
        raise Usage(
            "these options do not go together", remedy="Give one of --results, --fetch, --watch, --cancel and --forget."
        )
    api = LocalApi(Home.find().control_socket)
    if cancel or forget:
        ended = api.cancel_job(name) if cancel else api.forget_job(name)
        if as_json:
            print_json("job", ended)
        else:
            done(f"{'Cancelled' if cancel else 'Forgot'} {ended.job}", f"{ended.done} of {ended.tasks} tasks were done")
        return 0
    shown = api.job(name)
    if reads:
        return _read_results(shown, fetch, as_json=as_json, waits=watch)
    if watch:
        before = (time.monotonic(), shown.done)
        while True:
            _print_line(shown, as_json, before)
            if shown.ended_at is not None:
                return int(shown.state == "cancelled")
            time.sleep(WATCH_EVERY_S)
            shown = api.job(shown.job)
    if as_json:
        print_json("job", shown)
    else:
        _print_job(shown)
    return 0


def _print_job(shown: schema.Job) -> None:
    state = shown.state if not shown.failed else f"{shown.state}, {shown.failed} failed"
    click.echo(f"{style(shown.job, bold=True)}  {shown.label}  {state}  {shown.done} of {shown.tasks} done")
    if shown.delegates:
        click.echo(
            f"submitted by {shown.submitter}, carried on by {shown.carrier}, held by {', '.join(shown.delegates)}"
        )
    if shown.reason:
        say(f"nobody works on it now: {shown.reason}")
    if shown.done_by:
        print_table(["PEER", "DONE"], [[peer or "–", str(count)] for peer, count in sorted(shown.done_by.items())])


def _print_line(shown: schema.Job, as_json: bool, before: tuple[float, int]) -> None:
    """`before`: when the watch began, and how many tasks were done then."""
    if as_json:
        click.echo(msgspec.json.encode({"schema": SCHEMA, "job": msgspec.to_builtins(shown)}))
        return
    began_at, done_then = before
    elapsed_s = time.monotonic() - began_at
    pace = ""
    if shown.done > done_then and elapsed_s and shown.ended_at is None:
        rate = (shown.done - done_then) / elapsed_s
        left = show_duration((shown.tasks - shown.done) / rate)
        pace = f", {rate:,.3g} a second on {len(shown.done_by)} peers, {left} left"
    elif shown.reason:
        pace = f", nobody works on it now: {shown.reason}"
    click.echo(f"{shown.job}  {shown.state}  {shown.done} of {shown.tasks} done, {shown.failed} failed{pace}")


def _read_results(shown: schema.Job, folder: Path | None, *, as_json: bool, waits: bool) -> int:
    """Prints the results, or writes those of commands into a folder; the exit code."""
    from croft.client.grid import Grid

    if not shown.is_durable:
        raise Usage(f"job {shown.job} was not detached: its results went to its program", remedy="Use `detach=True`.")
    has_failed = shown.state == "cancelled"
    is_whole = waits or shown.ended_at is not None
    with Grid() as grid:
        outcomes = grid.job(shown.job).outcomes(is_in_order=is_whole)
        for one in outcomes if is_whole else _those_there(outcomes, shown.done):
            has_failed |= _print_result(one, folder, as_json)
    if not is_whole:
        say(f"the job goes on: {shown.done} of {shown.tasks} tasks are done; --watch waits for the others")
    return int(has_failed)


def _those_there(outcomes: Generator[Done], count: int) -> list[Done]:
    """As many as are recorded, in the order of the tasks: the first ones may be under way while later ones are done."""
    with contextlib.closing(outcomes):
        return sorted(itertools.islice(outcomes, count), key=lambda one: one.task)


def _print_result(one: Done, folder: Path | None, as_json: bool) -> bool:
    """Whether the task failed."""
    from croft.cli import detached
    from croft.client.detached_command import CommandDone

    line: dict[str, Any] = {"schema": SCHEMA, "task": one.task, "peer": one.peer_name}
    value: Any = None
    error: BaseException | None = None
    try:
        value = one.value()
    except Exception as caught:
        error = caught
        line["error"] = caught.message if isinstance(caught, CroftError) else f"{type(caught).__name__}: {caught}"
    if isinstance(value, CommandDone):
        return detached.show(one, value, folder, line if as_json else None)
    if error is None:
        if folder is not None:
            raise Usage("only commands make files to fetch", remedy="See what tasks returned: `croft job --results`.")
        line["result"] = _plain(value)
    if as_json:
        click.echo(msgspec.json.encode(line))
    elif error is None:
        click.echo(value if isinstance(value, str) else repr(value))
    else:
        say(f"task {one.task} on {one.peer_name}: {line['error']}")
    return error is not None


def _plain(value: object) -> object:
    """What JSON can carry of a result; its text for what it cannot."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        return repr(value)
