"""`croft put`, `get`, `ls`, `rm` and `storage`: files, sealed and spread over the peers of one's choice."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from croft.cli.group import Group
from croft.cli.output import ago, counted, done, print_json, print_table, say, style
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration, show_size
from croft.errors import Failed, Usage
from croft.model.ids import SHORT_LENGTH

if TYPE_CHECKING:
    from croft.client.stored_files import StoredFiles
    from croft.control import schema
    from croft.control.work_messages import StorageProgress

PIPED = "-"
SHOW_AFTER_S = 1.0
WHY = {"rule": "may not hold it", "owner": "one per owner", "room": "is fuller"}


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--as", "name", default="", help="What to call it; for several, the folder in which they are to be.")
@click.option("--on", multiple=True, metavar="PEER", help="Only this peer may hold it; may be given again.")
@click.option("--never", multiple=True, metavar="PEER", help="Neither this peer nor another one of its owner.")
@click.option("--keep", default="", metavar="LAYOUT", help="`4of8`: any 4 of 8 shares are enough; or `copies=3`.")
@click.option("--for", "lifetime", default="", metavar="TIME", help="It goes by itself after this, like 90d.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def put(
    paths: tuple[str, ...],
    name: str,
    on: tuple[str, ...],
    never: tuple[str, ...],
    keep: str,
    lifetime: str,
    as_json: bool,
) -> None:
    """Store files and folders at other peers: sealed here, so that nobody there can read them.

    \b
    croft put thesis.pdf
    croft put photos --keep 4of8 --never work-laptop
    tar c src | croft put - --as src.tar

    What is stored under a name before stays as an earlier version. By default the number of people who lend disk says
    how it is kept: copies at up to three of them, any half of the shares for more, `4of8` from eight on, `10of20`
    from twenty.
    """
    from croft.client.stored_files import name_bytes
    from croft.control.work_messages import OpenPut

    files = _stored_files()
    never_words = [word for text in never for word in text.split(",")]
    on_words = [word for text in on for word in text.split(",")]
    for_s = duration_s(lifetime) if lifetime else 0.0
    only, without = files.peer_ids(on_words), files.peer_ids(never_words)
    with ProgressLine("stored") as progress:
        if PIPED in paths:
            if len(paths) > 1 or not name:
                raise Usage("what is piped is put by itself, and needs a name", remedy="Say it: croft put - --as NAME")
            opening = OpenPut([], name_bytes(name), only, without, keep, for_s)
            answer = files.put_piped(opening, sys.stdin.buffer, progress)
        else:
            opening = OpenPut(_named(paths, name), b"", only, without, keep, for_s)
            answer = files.put_paths(opening, progress)
    if as_json:
        print_json("put", answer)
        return
    what = f"{answer.files} files" if answer.files != 1 else "1 file"
    done(f"Stored {what}", f"{show_size(answer.size_bytes)} · {show_size(answer.stored_bytes)} at others")
    shares = ", ".join(f"{holder} {count}" for holder, count in answer.holders.items())
    say(f"  {answer.layout:<28}{shares or 'nothing to hold'}")
    losses = answer.losses
    say(f"  Any {losses} of the holders of a file may be lost." if losses else "  No holder may be lost.")
    if name.startswith("croft:file:"):
        say("  The owner of the link takes it in once a device of theirs is up.")
    if answer.missing:
        say(f"! {answer.missing} shares found no place, so fewer may be lost than {answer.layout} bears.")


@click.command()
@click.argument("name")
@click.argument("place", required=False)
@click.option("--by", "device", default="", metavar="PEER", help="The version that this device put.")
@click.option("--at", "snapshot", default="", metavar="SNAPSHOT", help="As the files were then: `croft snapshot list`.")
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def get(name: str, place: str | None, device: str, snapshot: str, force: bool, as_json: bool) -> None:
    """Get a stored file, or all that is below a name, into PLACE; `-` prints it.

    \b
    croft get thesis.pdf
    croft get photos /tmp/photos
    croft get src.tar - | tar t
    croft get thesis.pdf@2 old.pdf
    """
    from croft.client.stored_files import name_bytes
    from croft.control.work_messages import OpenGet

    files = _stored_files()
    wanted, number = _split_version(name)
    at = name_bytes(wanted)
    shown = at
    if wanted.startswith("croft:file:"):
        from croft.storage.links import read_link

        line, _, below = wanted.partition("/")
        shown = os.fsencode(below.rstrip("/")) or read_link(line).name
    by = files.peer_ids([device])[0] if device else ""
    if place == PIPED:
        for piece in files.read(OpenGet(at, number=number, device=by, snapshot=snapshot)):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    last = os.fsdecode(shown).rsplit("/", 1)[-1]
    target = place or last
    if os.path.isdir(target) and place is not None:
        target = os.path.join(target, last)
    with ProgressLine("read") as progress:
        whole = os.fsencode(os.path.abspath(target))
        opening = OpenGet(at, whole, number, force, device=by, snapshot=snapshot)
        answer = files.get_to(opening, progress)
    if as_json:
        print_json("get", answer)
        return
    what = f"{answer.files} files" if answer.files != 1 else "1 file"
    done(f"Read {what}", f"{show_size(answer.size_bytes)} to {target}")
    for fault in answer.faults:
        say(f"! {fault}")


@click.command()
@click.argument("name", required=False, default="")
@click.option("--versions", is_flag=True, help="Every version, also of removed files.")
@click.option("--at-risk", is_flag=True, help="Only files that lack shares, and how many more holders may be lost.")
@click.option("--at", "snapshot", default="", metavar="SNAPSHOT", help="As the files were then: `croft snapshot list`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(name: str, versions: bool, at_risk: bool, snapshot: str, as_json: bool) -> None:
    """Stored files, or those below NAME."""
    found = _stored_files().ls(name, with_removed=versions, at_risk=at_risk, snapshot=snapshot)
    if as_json:
        print_json("files", found)
        return
    if at_risk:
        margins = [[show_size(file.size_bytes), _margin(file), file.name] for file in found]
        print_table(["SIZE", "MAY BE LOST", "NAME"], margins, none="No file is at risk.")
        return
    rows: list[list[str]] = []
    for file in found:
        if versions:
            rows += [_version_row(file.name, version) for version in file.versions]
        else:
            newest = file.versions[-1]
            rows.append([show_size(file.size_bytes), newest.layout, str(newest.number), ago(file.at), file.name])
    header = ["SIZE", "KEPT", "VERSION", "STORED", "NAME"]
    none = (
        "Nothing is stored here." if name or snapshot else "Nothing is stored yet. Store something: `croft put PATH`."
    )
    print_table([*header[:4], "BY", "NAME"] if versions else header, rows, none=none)
    for file in found:
        if file.versions[-1].until is not None and not versions:
            say(f"  {file.name} goes by itself in {show_duration(file.versions[-1].until - time.time())}")
        if file.is_conflict:
            number = file.versions[-1].number
            by = " and ".join(version.device for version in file.versions if version.number == number)
            say(f"! {file.name}: version {number} was put by {by} apart; get each with --by, and put what is right.")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-r", "--recursive", is_flag=True, help="All that is below these names.")
@click.option("--final", is_flag=True, help="With every version, and free the room at the holders now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rm(names: tuple[str, ...], recursive: bool, final: bool, as_json: bool) -> None:
    """Remove stored files. Earlier versions stay, and take room, unless it is --final."""
    from croft.control import schema

    files = _stored_files()
    answers = [files.rm(name, is_folder=recursive, is_final=final) for name in names]
    total = schema.FilesRemoved(
        files=sum(answer.files for answer in answers), freed_bytes=sum(answer.freed_bytes for answer in answers)
    )
    if as_json:
        print_json("removed", total)
        return
    what = f"{total.files} files" if total.files != 1 else "1 file"
    done(f"Removed {what}", f"{show_size(total.freed_bytes)} freed at others" if final else "earlier versions stay")


@click.command()
@click.argument("name", metavar="NAME@VERSION")
@click.option("--by", "device", default="", metavar="PEER", help="The version that this device put.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollback(name: str, device: str, as_json: bool) -> None:
    """Make an earlier version of a stored file the newest one again: `croft rollback thesis.pdf@2`."""
    from croft.client.local_api import LocalApi
    from croft.client.stored_files import name_bytes
    from croft.control import schema

    wanted, number = _split_version(name)
    if not number:
        raise Usage("which version is it to be?", remedy=f"Say it like {name}@2; see `croft ls --versions {name}`.")
    api = LocalApi(Home.find().control_socket)
    by = _stored_files().peer_ids([device])[0] if device else ""
    file = api.roll_back(
        schema.RollbackWanted(name=wanted, name_hex=name_bytes(wanted).hex(), number=number, device=by)
    )
    if as_json:
        print_json("file", file)
    else:
        done(f"Version {number} is back", f"as version {file.versions[-1].number} of {wanted}")


@click.group(cls=Group, alone="list")
def link() -> None:
    """Let others read stored files, or write them, for as long as you like."""


@link.command("make")
@click.argument("name")
@click.option("--to", multiple=True, metavar="WHO", help="A person or a community that reads; may be given again.")
@click.option("--write", multiple=True, metavar="WHO", help="One that reads, and writes; may be given again.")
@click.option("--verify", is_flag=True, help="WHO reads nothing, but can check that all of it is there.")
@click.option("--repair", is_flag=True, help="With --verify: and make lost shares again.")
@click.option("--for", "lasts", default="30d", show_default=True, metavar="TIME", help="How long it is good.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def make_link(
    name: str, to: tuple[str, ...], write: tuple[str, ...], verify: bool, repair: bool, lasts: str, as_json: bool
) -> None:
    """A line by which WHO reads NAME, or all below it, as it changes. It is of use to nobody else.

    The line is a name: others say `croft get LINE`, `croft ls LINE`; whoever may write says `croft put page --as
    LINE/page`, `croft rm LINE/page`. What they write is among your files once a device of yours is up.
    """
    from croft.client.local_api import LocalApi
    from croft.client.stored_files import name_bytes
    from croft.control import schema

    wanted = schema.LinkWanted(
        name=name,
        name_hex=name_bytes(name).hex(),
        to=list(to),
        writers=list(write),
        for_s=duration_s(lasts),
        verifies=verify,
        repairs=repair,
    )
    made = LocalApi(Home.find().control_socket).make_link(wanted)
    if as_json:
        print_json("link", made)
    else:
        click.echo(made.line)


@link.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_links(as_json: bool) -> None:
    """Links that you made, on this device or another one of yours."""
    from croft.client.local_api import LocalApi

    found = LocalApi(Home.find().control_socket).links()
    if as_json:
        print_json("links", found)
        return
    now = time.time()
    rows = [
        [
            one.link[:SHORT_LENGTH],
            "revoked" if one.is_revoked else "expired" if one.expires_at < now else show_duration(one.expires_at - now),
            ", ".join(f"{who}{_may(one, who)}" for who in one.to),
            one.name,
        ]
        for one in found
    ]
    print_table(["LINK", "GOOD FOR", "TO", "NAME"], rows, none="None yet. Make one: `croft link make NAME --to WHO`.")


@link.command("verify")
@click.argument("line")
@click.option("--deep", is_flag=True, help="Have every share read, and compare it; by default some of each holder's.")
@click.option("--repair", is_flag=True, help="Make lost shares again, if the line lets you.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_link(line: str, deep: bool, repair: bool, as_json: bool) -> None:
    """Check that all that LINE leads to is there, without being able to read any of it. Fails if something is lost."""
    from croft.client.local_api import LocalApi
    from croft.control import schema

    wanted = schema.VerificationWanted(line=line, is_deep=deep, repairs=repair)
    answer = LocalApi(Home.find().control_socket).verify_link(wanted)
    if as_json:
        print_json("verified", answer)
    else:
        whole = answer.stripes - answer.short
        done(f"Verified {answer.name}", f"{whole} of {answer.stripes} pieces have all their shares")
        if answer.rebuilt:
            say(f"  {answer.rebuilt} shares were made again.")
        for fault in answer.faults:
            say(f"! {fault}")
    if answer.unreadable:
        raise Failed(
            f"{answer.unreadable} of {answer.stripes} pieces cannot be read now",
            remedy="Tell the owner; peers that hold the rest may be off: `croft peers`.",
        )


@link.command("revoke")
@click.argument("name", metavar="LINK")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke_link(name: str, as_json: bool) -> None:
    """Have a link lead to nothing. What was read by it is out; later versions stay unreadable."""
    from croft.client.local_api import LocalApi

    revoked = LocalApi(Home.find().control_socket).revoke_link(name)
    if as_json:
        print_json("link", revoked)
    else:
        done("Revoked", f"{revoked.name}, which was for {', '.join(revoked.to)}")


@click.group(cls=Group, alone="list")
def snapshot() -> None:
    """Keep all stored files as they are now, under a name."""


@snapshot.command("take")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def take_snapshot(name: str, as_json: bool) -> None:
    """Keep them as they are now. It costs room only once files change."""
    from croft.client.local_api import LocalApi

    taken = LocalApi(Home.find().control_socket).take_snapshot(name)
    if as_json:
        print_json("snapshots", taken)
    else:
        done(f"Snapshot {name}", "see it with `croft ls --at`, read it with `croft get --at`")


@snapshot.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_snapshots(as_json: bool) -> None:
    """All snapshots."""
    from croft.client.local_api import LocalApi

    found = LocalApi(Home.find().control_socket).snapshots()
    if as_json:
        print_json("snapshots", found)
    else:
        rows = [[one.name, ago(one.at), str(one.files)] for one in found]
        print_table(["NAME", "TAKEN", "FILES"], rows, none="None yet. Take one: `croft snapshot take NAME`.")


@snapshot.command("rm")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def drop_snapshot(name: str, as_json: bool) -> None:
    """Forget one. What only it needed is freed by `croft storage --collect`."""
    from croft.client.local_api import LocalApi

    left = LocalApi(Home.find().control_socket).drop_snapshot(name)
    if as_json:
        print_json("snapshots", left)
    else:
        done(f"Forgot snapshot {name}")


@click.command()
@click.option("--check", is_flag=True, help="Ask all holders now, and make lost shares again.")
@click.option("--collect", is_flag=True, help="Have holders drop what no file needs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def storage(check: bool, collect: bool, as_json: bool) -> None:
    """How the stored files stand, and who holds how much of them.

    Holders are asked by themselves when peers come or go, and now and then: each has to prove some of what it says that
    it holds. Shares that are lost are made again elsewhere.
    """
    from croft.client.local_api import LocalApi

    api = LocalApi(Home.find().control_socket)
    if collect:
        freed = api.collect()
        if as_json:
            print_json("removed", freed)
        else:
            done("Collected", f"{show_size(freed.freed_bytes)} freed at others")
        return
    state = api.check_storage() if check else api.storage()
    if as_json:
        print_json("storage", state)
        return
    say(f"{counted(state.files, 'file')}, {show_size(state.size_bytes)}")
    if state.looked_at:
        whole = state.stripes - state.short
        said = f"{whole} of {state.stripes} pieces are whole, looked at {ago(state.looked_at)}"
        say(f"{said} · {state.rebuilt} shares made again since the start")
    if state.unreadable:
        say(f"! {state.unreadable} pieces cannot be read now. Details: `croft ls --at-risk`")
    rows = [
        [
            holder.name,
            "up" if holder.is_alive else "offline",
            "–" if holder.shares is None else str(holder.shares),
            "–" if holder.held_bytes is None else show_size(holder.held_bytes),
            "–" if holder.room_bytes is None else show_size(holder.room_bytes),
            f"{holder.passed} of {holder.passed + holder.failed}",
        ]
        for holder in state.holders
    ]
    print_table(["HOLDER", "STATE", "SHARES", "HOLDS", "ROOM", "PROVED"], rows, none="Nobody holds anything for you.")
    for ward in state.watched:
        say(f"Looks after {ward.stripes} pieces of {ward.twin[:10]}, who is away: {ward.rebuilt} shares made again")
    for fault in state.faults:
        say(f"! {fault}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
@click.option("--limit", default="10G", show_default=True, metavar="SIZE", help="Move at most so much.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rebalance(dry_run: bool, limit: str, as_json: bool) -> None:
    """Move shares to where they belong now: where each file may be, one per owner, by the room that peers offer.

    For when peers joined, offer more or less, or may hold your files no more. Each share has its new place, and was
    proved there, before it leaves the old one; so at no time may fewer holders be lost.
    """
    files = _stored_files()
    with ProgressLine("moved") as line:
        answer = files.rebalance(dry_run=dry_run, limit=limit, progress=lambda part: line(_moved_so_far(part)))
    if as_json:
        print_json("rebalanced", answer)
        return
    shown = answer.left if dry_run else answer.moved
    count, size = sum(one.shares for one in shown), sum(one.size_bytes for one in shown)
    if not shown and not answer.stuck:
        done("All shares lie where they belong")
        return
    rows = [[one.source, one.target, str(one.shares), show_size(one.size_bytes), WHY[one.why]] for one in shown]
    print_table(["FROM", "TO", "SHARES", "SIZE", "WHY"], rows)
    if dry_run:
        say(f"Would move {count} shares, {show_size(size)}: `croft rebalance`")
    else:
        done(f"Moved {count} shares", show_size(size))
        if left := sum(one.shares for one in answer.left):
            say(f"! {left} shares are still to be moved: run it again.")
    if answer.stuck:
        say(f"! {answer.stuck} shares ought to move, and nobody else who is up may hold them.")
    for problem in answer.problems:
        say(f"! {problem}")


class ProgressLine:
    """One line that is rewritten: how much, how fast, how long yet; on a terminal, if it takes a while."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_at = time.monotonic()
        self._is_shown = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, told: StorageProgress) -> None:
        took = time.monotonic() - self._began_at
        if took < SHOW_AFTER_S or not sys.stderr.isatty():
            return
        rate = told.done_bytes / took
        text = f"{show_size(told.done_bytes)} {self._what} · {show_size(int(rate))}/s"
        if told.total_bytes > 0 and rate > 0:
            left = max(0, told.total_bytes - told.done_bytes) / rate
            text += f" · {100 * told.done_bytes // told.total_bytes} % · {show_duration(left)} left"
        sys.stderr.write(f"\r\x1b[K{style(text, error=True, dim=True)}")
        sys.stderr.flush()
        self._is_shown = True


def _stored_files() -> StoredFiles:
    from croft.client.local_api import LocalApi
    from croft.client.stored_files import StoredFiles

    home = Home.find()
    return StoredFiles(home, LocalApi(home.control_socket))


def _named(paths: tuple[str, ...], name: str) -> list[tuple[bytes, bytes]]:
    """Pairs (path here, name there). Raises Usage."""
    from croft.client.stored_files import name_bytes

    pairs: list[tuple[bytes, bytes]] = []
    for path in paths:
        whole = os.fsencode(os.path.abspath(path))
        last = os.path.basename(whole)
        if name and (len(paths) > 1 or name.endswith("/")):
            there = name_bytes(name) + b"/" + last
        else:
            there = name_bytes(name) if name else last
        pairs.append((whole, there))
    return pairs


def _margin(file: schema.StoredFile) -> str:
    if file.margin is None or file.margin >= 0:
        return str(file.margin)
    return f"unreadable now: {-file.margin} too few"


def _moved_so_far(part: schema.Rebalanced) -> StorageProgress:
    from croft.control.work_messages import StorageProgress

    moved, left = (sum(one.size_bytes for one in some) for some in (part.moved, part.left))
    return StorageProgress(0, moved, moved + left)


def _may(link: schema.FileLink, who: str) -> str:
    """What somebody may do by a link besides reading."""
    if link.verifies:
        return " (repairs)" if link.repairs else " (verifies)"
    return " (writes)" if who in link.writers else ""


def _split_version(name: str) -> tuple[str, int]:
    """`thesis.pdf@2`: the second version of `thesis.pdf`."""
    head, at, tail = name.rpartition("@")
    return (head, int(tail)) if at and tail.isascii() and tail.isdigit() else (name, 0)


def _version_row(name: str, version: schema.StoredVersion) -> list[str]:
    size = "removed" if version.is_removed else show_size(version.size_bytes)
    return [size, version.layout, str(version.number), ago(version.at), version.device, name]
