"""The rows of the feature table that this house stands for, each shown by real daemons on machines of their own.

The machines are network namespaces with real interfaces between them. A test's docstring names its row.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from namespaces import Lab, alone, behind, bridged

from croft.adapters.iroh_transport import IrohTransport
from croft.adapters.sqlite_database import SqliteDatabase
from croft.adapters.system import SystemClock, SystemEntropy
from croft.model.isolation import Grade
from croft.node.identity import load_identity
from croft.overlay.invitation import GUESSES_MAX
from croft.overlay.invitation_code import Line, parse_code
from croft.overlay.messages import PROTOCOL, Load
from croft.overlay.passport import Lends, describe
from croft.overlay.record_messages import NOTICE_RECORDS, Push
from croft.overlay.service import MEMBER_KIND, Overlay
from croft.wire.codec import encode
from support import peers
from support.other_user import USER, give, wrapped_as_user
from support.peers import RealPeer, two_lines, until

T = TypeVar("T")

NAMES = ("ada", "bob", "cyd", "dot", "eve")
JOIN_S_MAX = 10.0
FIRST_USE_S_MAX = 60.0
FIRST_USE_COMMANDS_MAX = 4
ONE_MINUTE_S = 60.0
BULK_FRAME_BYTES_MIN = 1000
BULK_BYTES = 8 << 20
FLIP_EVERY_BYTES = 61
LENT_SLOTS = 7
TASKS = 200
TASK_S = 0.05


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Six machines on one wire; the last one is nobody's yet."""
    with bridged(6) as made:
        yield made


@pytest.fixture(scope="module")
def five(lab: Lab) -> Iterator[list[RealPeer]]:
    """Five machines with a peer each, all members of one community."""
    with peers.homes() as base:
        yield peers.community(base, NAMES, lab.hosts[:5])


@pytest.fixture
def folder() -> Iterator[Path]:
    with peers.homes() as base:
        yield base


# --- A1: self-made key identity --------------------------------------------------------------------------------------


def test_every_home_makes_an_identity_of_its_own_without_any_network(folder: Path) -> None:
    """A1: two homes on a machine that has nothing but `lo` get two ids; a copied home keeps its id."""
    with alone() as lab:
        first, second = (RealPeer(name, folder / name, lab[0]) for name in ("first", "second"))
        made = [peer.json("init") for peer in (first, second)]
        shutil.copytree(first.home, folder / "copy")
        copied = RealPeer("copy", folder / "copy", lab[0]).json("init")

    assert made[0]["is_new"] and made[1]["is_new"] and not copied["is_new"]
    assert made[0]["peer"] != made[1]["peer"] and made[0]["twin"] != made[1]["twin"]
    assert (copied["peer"], copied["twin"]) == (made[0]["peer"], made[0]["twin"])


def test_an_announcement_with_a_flipped_byte_is_refused_and_changes_no_list(folder: Path) -> None:
    """A1: a member sends a record of its own with one byte flipped, over a real link to a real daemon."""
    ada, mal = peers.community(folder, ["ada", "mal"])
    mal.stop()

    asyncio.run(_announce_flipped(mal, ada, slots_of(ada)))


async def _announce_flipped(mal: RealPeer, ada: RealPeer, listed: list[tuple[str, int]]) -> None:
    own_home = mal.files
    lends = Lends(2, 1 << 30, 1 << 28, Grade.B, "3.11", "x86_64", "1")
    async with contextlib.AsyncExitStack() as stack:
        database = await SqliteDatabase.open(own_home.database)
        stack.push_async_callback(database.close)
        identity, _ = load_identity(own_home)
        transport = await IrohTransport.open(identity.device.raw, [PROTOCOL], "127.0.0.1:0")
        stack.push_async_callback(transport.close)
        own = identity.own("mal")
        overlay = Overlay(
            own, transport, database, SystemClock(), SystemEntropy(), lambda: lends, lambda: Load(0, 0.0, 0.0)
        )
        await overlay.load()
        serving = asyncio.create_task(overlay.serve())
        stack.push_async_callback(_end, serving)
        await soon(overlay.links.all, "a link to ada")
        await soon(lambda: "mal" in peers.linked(ada), "ada's link to us")

        [membership] = overlay.communities()
        more = Lends(LENT_SLOTS, 1 << 30, 1 << 28, Grade.B, "3.11", "x86_64", "1")
        addresses = ["127.0.0.1:9"]
        record = describe(own, membership, more, addresses, now=time.time(), sequence=soon_after_now()).record
        flipped = [
            record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :] for at in range(0, len(record), FLIP_EVERY_BYTES)
        ]

        async def tell(records: list[bytes], until_true: Callable[[], bool]) -> None:
            # Both sides dial, and one of two links is replaced: what was said on it may have to be said again.
            async with asyncio.timeout(peers.WAIT_S_MAX):
                while not await asyncio.to_thread(until_true):
                    for link in overlay.links.all():
                        link.notify(
                            NOTICE_RECORDS, encode(Push(membership.community, [(MEMBER_KIND, r) for r in records]))
                        )
                    await asyncio.sleep(0.1)

        await tell(flipped, lambda: ada.log().count("a record from mal is refused") >= len(flipped))
        assert slots_of(ada) == listed
        # Untouched it is taken in: it was the flipped byte that kept the others out.
        await tell([record], lambda: (own.peer, LENT_SLOTS) in slots_of(ada))


def soon_after_now() -> int:
    """A sequence above all that came before, and not so far ahead that it is refused for that."""
    return int((time.time() + 60) * 1000)


def slots_of(peer: RealPeer) -> list[tuple[str, int]]:
    return [(other.peer, other.slots) for other in peer.api.peers()]


async def soon(condition: Callable[[], T], what: str) -> T:
    return await asyncio.to_thread(until, condition, what)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- B1: join by one line --------------------------------------------------------------------------------------------


def test_a_line_lets_one_machine_in_from_behind_a_nat_and_never_crosses_the_wire(lab: Lab, folder: Path) -> None:
    """B1: `croft up --join LINE` behind NAT within ten seconds; reuse refused; the code absent from every capture."""
    ada = peers.make(folder, "ada", lab[0]).start()
    with behind(lab[4]) as inside, lab.capture(lab[0]) as seen:
        line = ada.json("invite", "--line-only")["line"]
        joiner, late = (peers.make(folder, name, inside[0]) for name in ("joiner", "late"))
        late.start()
        began = time.monotonic()
        joiner.start("--join", line)
        took_s = time.monotonic() - began
        refused = late.croft("join", line)
        peers.await_links([ada, joiner])
        answer = ada.croft("run", "--on", "joiner", "--", "echo", "from inside").stdout
        joiner.stop()
        late.stop()

    assert took_s < JOIN_S_MAX
    assert refused.returncode == 5 and "used" in two_lines(refused)[0]
    assert answer == "from inside\n"
    code = parse_code(line)
    assert isinstance(code, Line)
    assert seen.frames > 10
    assert line.encode() not in seen and line.removeprefix("croft:").encode() not in seen
    assert code.token not in seen and code.token[:16] not in seen


def test_a_spoken_code_lets_one_machine_in_and_its_words_never_cross_the_wire(lab: Lab, folder: Path) -> None:
    """B1: on one network a number and two words are enough, once; a listener hears neither word."""
    ada = peers.make(folder, "ada", lab[5]).start()
    with lab.capture(lab[5]) as seen:
        code = ada.json("invite")["code"]
        joiner = peers.make(folder, "joiner", lab[2]).start("--join", code)
        late = peers.make(folder, "late", lab[3]).start().croft("join", code)
        peers.await_links([ada, joiner])

    assert late.returncode in (3, 5), late
    two_lines(late)
    assert seen.frames > 10
    assert all(word.encode() not in seen for word in (code, *code.split("-")[1:]))


def test_three_wrong_guesses_lock_a_spoken_code(lab: Lab, folder: Path) -> None:
    """B1: after three wrong guesses the right words are refused too."""
    ada = peers.make(folder, "ada", lab[5]).start()
    guesser = peers.make(folder, "guesser", lab[2]).start()
    code = ada.json("invite")["code"]
    number = code.partition("-")[0]
    wrong = [words for words in ("abandon-ability", "zebra-zone", "able-about", "acid-zoo") if words not in code]

    refused = [guesser.croft("join", f"{number}-{words}") for words in wrong[:GUESSES_MAX]]
    at_last = guesser.croft("join", code)

    assert [ended.returncode for ended in refused] == [5, 5, 5], [ended.stderr for ended in refused]
    # Once locked it is no longer announced: whoever looks for it is told that nobody has it open.
    assert at_last.returncode in (3, 5), at_last.stderr
    for ended in [*refused, at_last]:
        two_lines(ended)
    assert ada.json("invite", "list")["invitations"][0]["state"] == "locked"
    assert len(guesser.json("peers")["peers"]) == 1, "nobody was let in"


# --- C1: direct, authenticated, encrypted ----------------------------------------------------------------------------

DIAL = """
import asyncio, sys
from croft.adapters.iroh_transport import IrohTransport
from croft.errors import Unreachable
async def main():
    transport = await IrohTransport.open(bytes(32), [b"croft/1"], "0.0.0.0:0")
    try:
        await transport.dial(sys.argv[1], sys.argv[2:], sys.stdin.readline().strip().encode(), 5)
        print("connected")
    except Unreachable as error:
        print("refused:", error.message)
    await transport.close()
asyncio.run(main())
"""


def test_no_wire_shows_what_a_job_was_given(lab: Lab, five: list[RealPeer], folder: Path) -> None:
    """C1: a random marker that goes to a job and back, as a file, an argument and output, is in clear nowhere."""
    marker = secrets.token_hex(16)
    (folder / "in.txt").write_text(marker)
    with lab.capture(lab[0]) as first, lab.capture(lab[1]) as second, lab.capture(lab[2]) as third:
        said = five[0].ok("run", "--on", "bob", "-i", "in.txt", "--", "cat", "in.txt", cwd=folder)
        with five[0].grid() as grid:
            echoed = list(grid.map(lambda text: text, [marker] * 3, on=["bob", "cyd"]))

    assert said == marker and echoed == [marker] * 3
    for capture in (first, second, third):
        assert marker.encode() not in capture and bytes.fromhex(marker) not in capture
    assert first.frames > 10 and second.frames > 10


def test_bulk_travels_between_the_two_machines_alone(lab: Lab, five: list[RealPeer], folder: Path) -> None:
    """C1: the bytes go between the addresses of the two peers, and no third machine sees one of their frames."""
    (folder / "bulk").write_bytes(secrets.token_bytes(BULK_BYTES))
    with lab.capture(lab[0]) as here, lab.capture(lab[2]) as elsewhere:
        five[0].ok("run", "--on", "bob", "-i", "bulk", "-o", "bulk:back", "--", "true", cwd=folder)

    assert (folder / "back").read_bytes() == (folder / "bulk").read_bytes()
    bulk = [frame for frame in here.each_frame() if len(frame) >= BULK_FRAME_BYTES_MIN]
    assert sum(map(len, bulk)) >= 2 * BULK_BYTES
    pair = frozenset((lab[0].address, lab[1].address))
    elsewhere_bytes = sum(len(frame) for frame in bulk if frozenset(_addresses(frame)) != pair)
    assert elsewhere_bytes < BULK_BYTES / 100, "what members tell each other now and then, and no more"
    strangers = {frozenset(_addresses(f)) for f in elsewhere.each_frame() if len(f) >= BULK_FRAME_BYTES_MIN}
    assert frozenset((lab[0].address, lab[1].address)) not in strangers


def _addresses(frame: bytes) -> tuple[str, str]:
    assert frame[12:14] == b"\x08\x00", "bulk travels over IPv4 here"
    return socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])


def test_a_peer_whose_key_is_not_the_one_asked_for_is_not_talked_to(lab: Lab, five: list[RealPeer]) -> None:
    """C1: whoever dials bob's address for cyd's key gets no connection; for bob's own key it does."""
    status = {peer.name: peer.api.status() for peer in five[1:3]}
    address = [at for at in status["bob"].addresses if at.startswith(lab[1].address)]

    for name, outcome in (("cyd", "refused:"), ("bob", "connected")):
        environment = {"PYTHONPATH": str(peers.SOURCE)}
        process = lab[0].start(sys.executable, "-c", DIAL, status[name].peer, *address, environment=environment)
        said, complaint = process.communicate(PROTOCOL.decode() + "\n", timeout=20)
        assert said.startswith(outcome), (name, said, complaint)


# --- D1: a command on another machine --------------------------------------------------------------------------------


def test_a_command_runs_elsewhere_with_its_files_and_its_own_exit_code(five: list[RealPeer], folder: Path) -> None:
    """D1: `croft run -i in -o out -- sh -c '…; exit 7'`: code 7, right output, other host name, nothing left there."""
    (folder / "in").write_text("3\n1\n2\n")
    ended = five[0].croft(
        *("run", "-v", "--on", "cyd", "-i", "in", "-o", "out", "--"),
        *("sh", "-c", "sort in > out; hostname; echo oops >&2; exit 7"),
        cwd=folder,
    )

    assert ended.returncode == 7
    assert (folder / "out").read_text() == "1\n2\n3\n"
    assert ended.stdout.strip() == "cyd" != socket.gethostname()
    assert ended.stderr.splitlines() == ["running on cyd", "oops"]
    until(lambda: five[2].job_folders() == [], "cyd has removed the job's folder")


def test_output_is_live(five: list[RealPeer], folder: Path) -> None:
    """D1: what a command prints is here while the command still runs."""
    running = five[0].begin("run", "--on", "bob", "--", "sh", "-c", "echo first; sleep 600")
    assert running.stdout is not None
    try:
        assert running.stdout.readline() == "first\n"
        assert running.poll() is None
    finally:
        running.terminate()
        running.communicate(timeout=20)
    until(five[1].is_idle, "bob has stopped the command")


# --- D2: map over peers ----------------------------------------------------------------------------------------------


def test_a_map_over_four_peers_equals_the_local_one_and_all_take_part(five: list[RealPeer]) -> None:
    """D2: `map(f, range(200))` equals the list made here; three peers or more did it; sleeping is shared out."""

    def nap(number: int) -> int:
        import time

        time.sleep(0.05)
        return number * number

    with five[0].grid() as grid:
        list(grid.map(abs, range(8), on=list(NAMES[1:])))  # the boxes are warm
        began = time.monotonic()
        mapped = grid.map(nap, range(TASKS), on=list(NAMES[1:]))
        results = list(mapped)
        took_s = time.monotonic() - began

    assert results == [number * number for number in range(TASKS)]
    assert sum(mapped.done_by.values()) == TASKS
    assert len(mapped.done_by) >= 3 and "ada" not in mapped.done_by
    assert took_s < 0.5 * TASKS * TASK_S


# --- H1: a stranger to the program, without root ---------------------------------------------------------------------


def test_somebody_without_root_does_useful_work_within_four_commands_and_a_minute(
    lab: Lab, five: list[RealPeer], folder: Path
) -> None:
    """H1: uid 1000 on a fresh machine: up and join, first job, first file."""
    line = five[0].json("invite", "--line-only")["line"]
    newcomer = RealPeer("newcomer", folder / "newcomer", lab[5], wrapped_as_user())
    give(newcomer.home)
    peers.LIVING.append(newcomer)
    (newcomer.home / "words").write_text("b\na\n")
    commands = [
        ["up", "--join", line],
        ["run", "--", "id", "-u"],
        ["run", "-i", "words", "-o", "sorted", "--", "sh", "-c", "sort words > sorted"],
    ]
    began = time.monotonic()
    said = [newcomer.ok(*command, cwd=newcomer.home) for command in commands]
    took_s = time.monotonic() - began

    assert len(commands) <= FIRST_USE_COMMANDS_MAX and took_s < FIRST_USE_S_MAX
    assert said[1] == "1000\n"
    assert (newcomer.home / "sorted").read_text() == "a\nb\n"
    assert (newcomer.home / "sorted").stat().st_uid == USER
    # It lends too, and what a command closed to itself there is removed all the same.
    until(lambda: newcomer.api.status().name in peers.linked(five[0]), "ada sees the newcomer")
    five[0].ok("run", "--on", newcomer.api.status().peer, "--", "sh", "-c", CLOSE_TO_ITSELF)
    until(lambda: newcomer.job_folders() == [], "the newcomer has removed the job's folder")
    newcomer.stop()


CLOSE_TO_ITSELF = "mkdir -p a/b && touch a/b/c && chmod 000 a/b && chmod 000 a"


# --- H2: one answer, two faces ---------------------------------------------------------------------------------------

CHANGING = {"seen_at", "cpu", "disk", "round_trip_s", "slots_busy", "guesses_left"}
"""What may differ between two questions a moment apart."""


def steady(value: object) -> object:
    """A plain value without what changes by itself."""
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in CHANGING}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def test_every_command_prints_what_the_python_api_returns(five: list[RealPeer], folder: Path) -> None:
    """H2: for each command that has `--json`: the schema's number, and beside it the API's value, field by field."""
    ada = five[0]
    with ada.grid() as grid:
        grid.submit(abs, -1).result()
    with ada.grid() as grid:
        made = ada.json("invite", "--line-only")
        assert steady({**made, "line": ""}) == {"schema": 1, **built(grid.api.invitations()[0])}
        withdrawn = ada.json("invite", "withdraw", made["invitation"])
        assert steady(withdrawn) == {"schema": 1, **built(grid.api.invitations()[0])}
        questions: list[tuple[list[str], str, Callable[[], object]]] = [
            (["status"], "", grid.status),
            (["up"], "", grid.status),
            (["peers"], "peers", grid.peers),
            (["jobs"], "jobs", grid.jobs),
            (["invite", "list"], "invitations", grid.api.invitations),
            (["config", "show"], "settings", grid.api.settings),
            (["contacts"], "contacts", grid.api.contacts),
            (["expose", "list"], "exposures", grid.api.exposures),
            (["limit", "list"], "limits", grid.api.limits),
            (["device", "list"], "devices", grid.api.devices),
            (["community"], "communities", grid.api.communities),
            (["community", "list"], "communities", grid.api.communities),
            (["community", "members"], "members", grid.api.community_members),
            (["community", "rules"], "", lambda: grid.api.set_rules({})),
            (["community", "log"], "acts", grid.api.community_log),
        ]
        changes: list[tuple[list[str], Callable[[], list[object]]]] = [
            (["contacts", "add", "bob", "robert"], grid.api.contacts),
            (["expose", "8000", "--to", "robert"], grid.api.exposures),
            (["limit", "set", "5Mbit", "--peer", "cyd"], grid.api.limits),
        ]
        for command, ask_for_all in changes:
            assert steady(ada.json(*command)) == {"schema": 1, **built(ask_for_all()[0])}, command
        for command, name, ask in questions:
            asked = built(ask())
            expected = {"schema": 1, name: asked} if name else {"schema": 1, **asked}
            assert steady(ada.json(*command)) == expected, command
        undone = [["limit", "remove", "1"], ["expose", "remove", "8000"], ["contacts", "remove", "robert"]]
        assert [ada.json(*command)["schema"] for command in undone] == [1, 1, 1]
        assert [grid.api.contacts(), grid.api.exposures(), grid.api.limits()] == [[], [], []]
        twin = ada.json("init")
        status = grid.status()
        assert (twin["schema"], twin["twin"], twin["peer"], twin["is_new"]) == (1, status.twin, status.peer, False)


def test_join_prints_what_the_python_api_returns(folder: Path) -> None:
    """H2: `croft join --json`."""
    ada, bob, cyd = peers.start(folder, ["ada", "bob", "cyd"])
    lines = [ada.api.invite(is_spoken=False).line for _ in range(2)]

    asked = built(bob.api.join(lines[0]))
    printed = cyd.json("join", lines[1])

    assert printed == {"schema": 1, **asked, "members": 3, "twin": cyd.json("status")["twin"]}
    assert asked["twin"] == bob.json("status")["twin"]


def built(value: object) -> dict[str, object]:
    return steady(msgspec.to_builtins(value))


# --- A2: every peer is the same --------------------------------------------------------------------------------------


def test_every_peer_gives_and_takes(five: list[RealPeer]) -> None:
    """A2: within a minute each of five runs a job for another and has one run."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(five)) as pool:
        said = list(pool.map(run_elsewhere, five, [*five[1:], five[0]]))

    assert said == [f"for {peer.name}\n" for peer in five]
    assert time.monotonic() - began < ONE_MINUTE_S


@pytest.mark.parametrize("victim", range(len(NAMES)), ids=NAMES)
def test_whoever_is_killed_the_others_still_place_work(five: list[RealPeer], victim: int) -> None:
    """A2: SIGKILL each in turn; the other four have jobs run, placed by themselves and on each other."""
    others = [*five[victim + 1 :], *five[:victim]]
    five[victim].kill()
    with ThreadPoolExecutor(len(others)) as pool:
        placed = pool.submit(others[0].ok, "run", "--avoid", NAMES[victim], "--", "echo", "anywhere")
        said = list(pool.map(run_elsewhere, others, [*others[1:], others[0]]))
        assert placed.result() == "anywhere\n"
    five[victim].start()
    peers.await_links(five)

    assert said == [f"for {peer.name}\n" for peer in others]


def run_elsewhere(peer: RealPeer, other: RealPeer) -> str:
    return peer.ok("run", "--on", other.name, "--", "echo", f"for {peer.name}")
