"""`croft backup`: folders of this machine kept at other peers, as they were at many times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from croft.cli.group import Group
from croft.cli.output import ago, done, print_json, print_table, say
from croft.cli.storage import ProgressLine
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration, show_size
from croft.errors import Failed, NotFound, Usage

if TYPE_CHECKING:
    from croft.client.backups import Backups
    from croft.control import backup_schema

F = TypeVar("F", bound=Callable[..., Any])

NAMED_MAX = 10
TELLING_RATIO_MAX = 10
"""What is sent for less than this is mostly what any run sends."""


@click.group(cls=Group, alone="list")
def backup() -> None:
    """Back up folders to other peers, and restore them as they were.

    \b
    croft backup add ~/photos --to friends --every 6h --keep-daily 30
    croft backup run photos
    croft backup restore photos --into /tmp/back
    """


def _what_is_wanted(command: F) -> F:
    """The options of what `add` and `change` say."""
    for option in reversed(
        [
            click.option("--to", multiple=True, metavar="WHO", help="Who may hold it: friends, communities, peers."),
            click.option("--keep", metavar="LAYOUT", help="`4of8`: any 4 of 8 shares are enough; or `copies=3`."),
            click.option("--every", metavar="TIME", help="How often it runs by itself, as `6h` or `1d`."),
            click.option("--exclude", multiple=True, metavar="PATTERN", help="As `*.tmp`; with a /, whole paths."),
            click.option("--keep-last", type=int, metavar="N", help="Keep the last N snapshots."),
            click.option("--keep-hourly", type=int, metavar="N", help="Keep the last one of each of N hours."),
            click.option("--keep-daily", type=int, metavar="N", help="… of each of N days."),
            click.option("--keep-weekly", type=int, metavar="N", help="… of each of N weeks."),
            click.option("--keep-monthly", type=int, metavar="N", help="… of each of N months."),
            click.option("--keep-yearly", type=int, metavar="N", help="… of each of N years."),
        ]
    ):
        command = option(command)
    return command


@backup.command("add")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--name", default="", help="What to call it; by default as the first path ends.")
@_what_is_wanted
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(paths: tuple[str, ...], name: str, as_json: bool, **wanted: Any) -> None:
    """Define a backup of files and folders of this machine. With --every it begins at once.

    Without any of the --keep-… options of snapshots, all of them are kept.
    """
    from croft.client.backups import EVERYTHING

    made = _backups().add(*paths, name=name, **_given(EVERYTHING, **wanted))
    if as_json:
        print_json("backup", made)
        return
    done(f"Added {made.name}", _when_it_runs(made))


@backup.command("change")
@click.argument("name")
@_what_is_wanted
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def change(name: str, as_json: bool, **wanted: Any) -> None:
    """Change what was said when a backup was added; what is stored stays. `--every 0`: it runs when it is told to."""
    backups = _backups()
    known = next((one for one in backups.list() if one.name == name), None)
    if known is None:
        raise NotFound(f"there is no backup `{name}`", remedy="See which there are: `croft backup list`.")
    given = _given(known.policy, **wanted)
    if not given:
        raise Usage("what is to change?", remedy="Say it like --every 1d or --keep-daily 30.")
    changed = backups.change(name, **given)
    if as_json:
        print_json("backup", changed)
        return
    done(f"Changed {changed.name}", _when_it_runs(changed))


@backup.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_backups(as_json: bool) -> None:
    """All backups: when each ran last and runs next, and how many holders may be lost."""
    _list(as_json)


@backup.command("run")
@click.argument("name")
@click.option("--anew", is_flag=True, help="Read and send everything, as where holders lost some of it for good.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(name: str, anew: bool, as_json: bool) -> None:
    """Run a backup now: what changed is read, and what no snapshot has yet is sent."""
    with ProgressLine("looked at") as progress:
        report = _backups().run(name, is_anew=anew, progress=progress)
    if as_json:
        print_json("run", report)
        return
    done(f"Snapshot {name}@{report.snapshot}", f"{_files(report.files)}, {show_size(report.size_bytes)}")
    say(f"  {report.new} new, {report.changed} changed, {report.unchanged} unchanged")
    took = show_duration(max(0.0, report.ended_at - report.began_at))
    is_telling = 0 < report.sent_bytes <= TELLING_RATIO_MAX * report.size_bytes
    ratio = f", {_percent(report.sent_bytes / report.size_bytes)} of it all" if is_telling else ""
    say(f"  {show_size(report.read_bytes)} read, {show_size(report.sent_bytes)} sent{ratio} · {took}")
    _say_named(report.named_unreadable, report.unreadable, "could not be read and are not in it")
    _say_named(report.named_torn, report.torn, "changed each time they were read, and may be neither old nor new")


@backup.command("snapshots")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def snapshots(name: str, as_json: bool) -> None:
    """What there is of a backup, oldest first."""
    found = _backups().snapshots(name)
    if as_json:
        print_json("snapshots", list(found))
        return
    rows = [
        [f"{name}@{one.number}", _when(one.at), ago(one.at), str(one.files), show_size(one.size_bytes), _lacks(one)]
        for one in found
    ]
    none = "None yet. Make one: `croft backup run NAME`."
    print_table(["SNAPSHOT", "MADE", "AGO", "FILES", "SIZE", "LACKS"], rows, none=none)


@backup.command("restore")
@click.argument("name", metavar="NAME[@SNAPSHOT]")
@click.argument("inside", required=False, default="")
@click.option("--into", required=True, metavar="FOLDER", type=click.Path(), help="Where to write it.")
@click.option("--force", is_flag=True, help="Replace files that are there already and differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def restore(name: str, inside: str, into: str, force: bool, as_json: bool) -> None:
    """Write a snapshot, the newest by default, or the part INSIDE of it, into a folder.

    \b
    croft backup restore photos --into /tmp/back
    croft backup restore photos@12 photos/2024 --into ~

    Files that are there already and are right are left as they are; so it goes on where it was interrupted.
    """
    wanted, number = split_snapshot(name)
    with ProgressLine("written") as progress:
        answer = _backups().restore(
            wanted, into, snapshot=number, inside=os.fsencode(inside), replaces=force, progress=progress
        )
    if as_json:
        print_json("restored", answer)
        return
    done(f"Restored {wanted}@{answer.snapshot}", f"{_files(answer.files)}, {show_size(answer.size_bytes)} to {into}")
    if answer.left:
        say(f"  {answer.left} were there and right")
    _say_named(answer.problems, len(answer.problems), "things could not be set as they were")
    for fault in answer.faults:
        say(f"! {fault}")


@backup.command("verify")
@click.argument("name")
@click.option("--read", "reads", is_flag=True, help="Read and check every byte, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(name: str, reads: bool, as_json: bool) -> None:
    """Ask all holders whether all of a backup is there. Fails if something cannot be restored now."""
    with ProgressLine("read") as progress:
        answer = _backups().verify(name, reads=reads, progress=progress)
    if as_json:
        print_json("verified", answer)
    elif answer.is_whole:
        read = f", {show_size(answer.read_bytes)} read and right" if reads else ""
        done(f"{name} is whole", f"{answer.snapshots} snapshots in {answer.packs} packs{read}")
        say(f"  {_losses(answer.margin)}")
    if answer.is_whole:
        return
    _say_named(answer.damaged, len(answer.damaged), "things lack something")
    raise Failed(
        f"part of {name} cannot be restored now",
        remedy=f"Try again when holders are back: `croft peers`; if they are gone: `croft backup run {name} --anew`.",
    )


@backup.command("prune")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(name: str, as_json: bool) -> None:
    """Forget the snapshots that are not to be kept, and free what only they needed."""
    answer = _backups().prune(name)
    if as_json:
        print_json("pruned", answer)
        return
    freed = "holders free it later" if answer.is_freed_later else f"{show_size(answer.freed_bytes)} freed at others"
    done(f"Forgot {len(answer.forgotten)} snapshots", freed)
    say(f"  {answer.packs_dropped} packs dropped, {answer.packs_rewritten} written anew without what nothing needs")


@backup.command("adopt")
@click.argument("name")
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@click.option("--name", "own_name", default="", help="What to call it from now on; by default as before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def adopt(name: str, paths: tuple[str, ...], own_name: str, as_json: bool) -> None:
    """Go on, from this machine, with the backup NAME of a device of yours that is gone. Nothing is sent again.

    It backs up PATHs from now on, or what it did before: they must be here, so restore them first.
    """
    adopted = _backups().adopt(name, *paths, own_name=own_name)
    if as_json:
        print_json("backup", adopted)
        return
    done(f"Adopted {adopted.name}", _when_it_runs(adopted))


@backup.command("rm")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rm(name: str, as_json: bool) -> None:
    """Remove a backup, with all its snapshots."""
    answer = _backups().rm(name)
    if as_json:
        print_json("removed", answer)
        return
    freed = "holders free it later" if answer.is_freed_later else f"{show_size(answer.freed_bytes)} freed at others"
    done(f"Removed {name}", freed)


def split_snapshot(name: str) -> tuple[str, int]:
    """`photos@12`: the twelfth snapshot of `photos`; 0: the newest. Raises Usage."""
    head, at, tail = name.partition("@")
    if not at:
        return head, 0
    if not (tail.isascii() and tail.isdigit() and int(tail)):
        raise Usage(
            f"`{name}` names no snapshot", remedy=f"Say it like {head}@12; see `croft backup snapshots {head}`."
        )
    return head, int(tail)


def _backups() -> Backups:
    from croft.client.backups import Backups
    from croft.client.local_api import LocalApi

    home = Home.find()
    return Backups(home, LocalApi(home.control_socket))


def _given(
    policy: backup_schema.RetentionPolicy,
    *,
    to: tuple[str, ...],
    keep: str | None,
    every: str | None,
    exclude: tuple[str, ...],
    **counts: int | None,
) -> dict[str, Any]:
    """What the options say. `counts`: `keep_last` and its like; the others are as in `policy`."""
    from msgspec.structs import replace

    given: dict[str, Any] = {}
    if to:
        given["to"] = [word for text in to for word in text.split(",")]
    if keep is not None:
        given["keep"] = keep
    if every is not None:
        given["every_s"] = duration_s(every)
    if exclude:
        given["exclude"] = list(exclude)
    said = {name.removeprefix("keep_"): count for name, count in counts.items() if count is not None}
    if said:
        given["policy"] = replace(policy, **said)
    return given


def _when_it_runs(one: backup_schema.Backup) -> str:
    return f"runs every {show_duration(one.every_s)}" if one.every_s else f"run it: croft backup run {one.name}"


def _list(as_json: bool) -> None:
    found = _backups().list()
    if as_json:
        print_json("backups", found)
        return
    rows = [
        [
            one.name,
            "now" if one.is_running else ago(one.newest_at),
            _next(one),
            str(one.snapshots),
            show_size(one.size_bytes),
            "–" if one.margin is None else str(max(0, one.margin)),
        ]
        for one in found
    ]
    none = "None yet. Begin: `croft backup add PATH --every 6h`."
    print_table(["NAME", "LAST RUN", "NEXT", "SNAPSHOTS", "SIZE", "MAY BE LOST"], rows, none=none)
    for one in found:
        if one.trouble:
            say(f"! {one.name}: {one.trouble}")


def _next(one: backup_schema.Backup) -> str:
    if not one.is_own:
        return f"at {one.device}"
    if one.next_at is None:
        return "–"
    left = one.next_at - time.time()
    return "due" if left <= 0 else show_duration(left)


def _losses(margin: int | None) -> str:
    if margin is None:
        return "Nothing is stored yet."
    return f"Any {margin} of the holders may be lost." if margin else "No holder may be lost."


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _lacks(one: backup_schema.BackupSnapshot) -> str:
    said = [f"{one.unreadable} unreadable"] if one.unreadable else []
    said += [f"{one.torn} torn"] if one.torn else []
    return ", ".join(said) or "–"


def _say_named(named: list[str], count: int, what: str) -> None:
    if not count:
        return
    say(f"! {count} {what}:")
    for one in named[:NAMED_MAX]:
        say(f"    {one}")
    if count > len(named[:NAMED_MAX]):
        say(f"    … and {count - len(named[:NAMED_MAX])} more")
