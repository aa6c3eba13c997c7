"""Rows of the feature table about capabilities, shown by real daemons. A test's docstring names its row."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import croft
from croft.errors import (
    BadArgument,
    CallLost,
    CapabilityFailed,
    NotFound,
)
from support import capable, peers
from support.peers import RealPeer, two_lines, until
from support.wasm import opens, save


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with peers.homes() as folder:
        yield folder


@pytest.fixture(scope="module")
def village(base: Path) -> list[RealPeer]:
    """Ada calls, bob and cyd can do things; dan is a member too, and eve is not."""
    together = peers.community(base, ["ada", "bob", "cyd", "dan"])
    return [*together, peers.make(base, "eve").start()]


@pytest.fixture(scope="module")
def grid(village: list[RealPeer]) -> Iterator[croft.Grid]:
    with village[0].grid() as made:
        yield made


def offered(peer: RealPeer, base: Path, function: str, *options: str, seen_by: RealPeer) -> None:
    """Offers a function, and waits until somebody knows of it."""
    capable.offer(peer, base, function, *options)
    name = options[options.index("--name") + 1] if "--name" in options else function
    until(lambda: (name, peer.name) in known(seen_by), f"{seen_by.name} knows of {name}")


def known(peer: RealPeer) -> list[tuple[str, str]]:
    return [(one.name, one.by) for one in peer.api.capabilities()]


def refused(function: Any, *arguments: Any, **named: Any) -> BadArgument:
    with pytest.raises(BadArgument) as caught:
        function(*arguments, **named)
    return caught.value


# --- F2: found and called by name ------------------------------------------------------------------------------------


def test_a_member_calls_by_name_and_an_outsider_sees_nothing(village: list[RealPeer], base: Path) -> None:
    """F2: member calls `ocr` by name only: right answer; bad type refused before run; outsider sees none."""
    ada, bob, _, _, eve = village
    offered(bob, base, "ocr", "--example", "ocr(page, language='de')", seen_by=ada)
    page = base / "scan.txt"
    page.write_text("ink")

    assert ada.ok("call", "ocr", f"page=@{page}", "language=de") == "bob de1 scan.txt ink\n"
    assert ada.json("call", "ocr", f"page={page}", "zoom=3")["result"] == "bob en3 scan.txt ink"
    shown = ada.ok("capabilities", "ocr")
    assert "ocr(page: Path, language: str = 'en', zoom: int = 1) -> str" in shown and "In any language." in shown
    said, remedy = two_lines(ada.croft("call", "ocr", f"page=@{page}", "zoom=big"))
    assert "`zoom`" in said and "big" in said and "ocr(page: Path" in remedy
    assert "`languge`" in two_lines(ada.croft("call", "ocr", f"page=@{page}", "languge=de"))[0]
    assert two_lines(ada.croft("call", "orc", f"page=@{page}"))[1] == "Did you mean `ocr`?"
    assert "ocr" not in eve.ok("capabilities") and eve.croft("call", "ocr", f"page=@{page}").returncode == 3


def test_what_is_for_some_people_only_nobody_else_hears_of(village: list[RealPeer], base: Path) -> None:
    """F2: offered to one person, listed there alone; to others a call of it is as if there were none."""
    ada, bob, cyd, _, _ = village
    offered(bob, base, "pid", "--name", "for-ada", "--to", "ada", seen_by=ada)

    assert ("for-ada", "bob") not in known(cyd)
    assert int(ada.ok("call", "for-ada")) > 0
    with cyd.grid() as grid, pytest.raises(NotFound, match="nobody here offers"):
        grid.twin("bob").for_ada()
    bob.ok("offer", "withdraw", "for-ada")
    until(lambda: ("for-ada", "bob") not in known(ada), "ada hears that it is withdrawn")


def test_bad_arguments_are_named_and_nothing_runs(village: list[RealPeer], base: Path, grid: croft.Grid) -> None:
    """F2: bad type refused before run, at the caller; and by the provider, who does not trust callers."""
    ada, bob, _, _, _ = village
    offered(bob, base, "note", seen_by=ada)
    trace = base / "trace"
    note = grid.capability("note")

    assert refused(note, str(trace), text=7).field == "text"
    assert refused(note).field == "path"
    assert refused(note, str(trace), txt="x").field == "txt"
    assert not trace.exists()
    assert note(str(trace), text="ab") == 2 and trace.read_text() == "ab"


def test_python_shows_what_it_takes_and_gives_what_it_says(
    village: list[RealPeer], base: Path, grid: croft.Grid
) -> None:
    """F2: completion, help, plain data, bytes, files and asyncio functions."""
    ada, bob, _, _, _ = village
    for function in ("moved", "back", "later", "page_file"):
        offered(bob, base, function, seen_by=ada)
    twin = grid.twin("bob")

    assert {"moved", "back", "later"} <= set(dir(twin))
    assert str(inspect.signature(twin.moved)) == "(points: 'list[Point]', by: 'int') -> 'list[Point]'"
    assert "Offered by bob" in twin.moved.__doc__
    assert twin.moved([{"x": 1, "y": 2}], by=1) == [{"x": 2, "y": 3}]
    assert "points[0].y" in str(refused(twin.moved, [{"x": 1}], by=1))
    large = os.urandom(3 << 20)
    assert twin.back(large) == large[::-1]
    assert twin.later(1) == 2
    assert twin.page_file("hello").read_text() == "hello"


def test_what_goes_wrong_at_the_provider_is_told_with_its_name(
    village: list[RealPeer], base: Path, grid: croft.Grid
) -> None:
    """F2: results of the wrong type, exceptions and deaths name the provider; a death fails one call, not the next."""
    ada, bob, _, _, _ = village
    for function in ("liar", "raises", "dies"):
        offered(bob, base, function, seen_by=ada)
    bob_daemon = bob.process

    with pytest.raises(CapabilityFailed, match=r"bob answered `liar` with the wrong type"):
        grid.capability("liar")()
    with pytest.raises(CapabilityFailed, match=r"`raises` on bob raised LookupError: nothing under 3") as raised:
        grid.capability("raises")(3)
    assert raised.value.type_name == "LookupError" and 'f"nothing under {x}"' in raised.value.remote_traceback
    with pytest.raises(CallLost, match="SIGKILL") as lost:
        grid.capability("dies")()
    assert lost.value.may_have_run and lost.value.provider == "bob"
    assert bob.process == bob_daemon
    assert refused(grid.capability("raises"), "x").field == "x"


def test_streams_go_in_and_out_and_end_with_whoever_reads_them(
    village: list[RealPeer], base: Path, grid: croft.Grid
) -> None:
    """F2: generators both ways; a provider that streams for ever is ended when its caller goes."""
    ada, bob, _, _, _ = village
    for function in ("count", "shout", "total"):
        offered(bob, base, function, seen_by=ada)
    ended = base / "ended"

    assert list(grid.capability("count")(100)) == list(range(100))
    assert list(grid.capability("shout")(f"line {n}" for n in range(100))) == [f"LINE {n}!" for n in range(100)]
    assert grid.capability("total")(iter(range(1000))) == 499_500
    endless = grid.capability("count")(1 << 40, path=str(ended))
    assert [next(endless) for _ in range(50)] == list(range(50))
    endless.close()
    until(ended.exists, "the provider's generator is closed")
    ended.unlink()
    program = ada.begin("call", "count", f"n={1 << 40}", f"path={ended}")
    assert program.stdout is not None and program.stdout.readline() == "0\n"
    program.kill()
    program.communicate()
    until(ended.exists, "the provider's generator is closed when its caller is killed")
    with pytest.raises(BadArgument, match=r"lines\[\]"):
        list(grid.capability("shout")(iter([1])))


def test_asyncio_programs_call_too(village: list[RealPeer], base: Path) -> None:
    """F2: the asyncio twin: many calls at once, streams in and out, a stream that is left."""
    ada, bob, _, _, _ = village
    for function in ("add", "count", "shout", "raises"):
        offered(bob, base, function, seen_by=ada)

    async def letters() -> AsyncIterator[str]:
        for letter in "abc":
            yield letter

    async def story() -> None:
        async with await croft.connect_async(ada.home) as grid:
            add, count, shout = [await grid.capability(name) for name in ("add", "count", "shout")]
            assert await asyncio.gather(*(add(n, 1) for n in range(50))) == list(range(1, 51))
            twin = await grid.twin("bob")
            assert await twin.add(2) == 4 and {"add", "count"} <= set(dir(twin))
            assert [number async for number in count(30)] == list(range(30))
            assert [line async for line in shout(letters())] == ["A!", "B!", "C!"]
            async for number in count(1 << 40):
                if number == 100:
                    break
            with pytest.raises(CapabilityFailed, match="nothing under 3"):
                await (await grid.capability("raises"))(3)
            with pytest.raises(BadArgument, match="must be a whole number"):
                await add("x")

    asyncio.run(story())


def test_a_command_is_called_like_a_function(village: list[RealPeer], base: Path) -> None:
    """F2: a command with declared parameters; what would pass for an option is refused."""
    ada, bob, _, _, _ = village
    page = base / "page.txt"
    page.write_text("ink\nwell\n")
    bob.ok("offer", "capability", "--command", "grep -c {word} {page:file}", "--name", "occurrences")
    until(lambda: ("occurrences", "bob") in known(ada), "ada knows of it")

    assert "occurrences(word: str, page: Path) -> str" in ada.ok("capabilities", "occurrences")
    assert ada.ok("call", "occurrences", "word=ink", f"page=@{page}").strip() == "1"
    assert "would pass for an option" in two_lines(ada.croft("call", "occurrences", "word=-r", f"page=@{page}"))[0]
    assert "exited with 1" in two_lines(ada.croft("call", "occurrences", "word=oil", f"page=@{page}"))[0]


def test_webassembly_is_called_like_a_command(village: list[RealPeer], base: Path) -> None:
    """F2: a program that sees the file it is sent, and nothing else of the machine that offers it."""
    ada, bob, _, _, _ = village
    page, program = base / "page.txt", save(base, "reads.wasm", opens("page.txt"))
    page.write_text("ink")
    bob.ok("offer", "capability", "--command", f"{program} {{page:file}}", "--name", "reads")
    until(lambda: ("reads", "bob") in known(ada), "ada knows of it")

    assert ada.ok("call", "reads", f"page=@{page}").strip() == "ink"


def test_a_folder_is_listed_and_read(village: list[RealPeer], base: Path, grid: croft.Grid) -> None:
    """F2: a data set: its files by name, and nothing else of the machine."""
    ada, bob, _, _, _ = village
    data = base / "data"
    data.mkdir()
    (data / "scan.txt").write_text("ink")
    bob.ok("offer", "capability", "--data", str(data), "--name", "scans", "--text", "What was scanned.")
    until(lambda: ("scans", "bob") in known(ada), "ada knows of it")

    assert grid.twin("bob").scans() == ["scan.txt"]
    assert grid.twin("bob").scans("scan.txt").read_text() == "ink"
    ada.ok("call", "scans", "name=scan.txt", "-o", str(base / "copy"))
    assert (base / "copy").read_text() == "ink"
    with pytest.raises(CapabilityFailed, match="not in it"):
        grid.twin("bob").scans("../able.py")


def test_a_device_has_one_holder_whether_jobs_or_capabilities_use_it(village: list[RealPeer], base: Path) -> None:
    """F2, D11: a capability that needs a device waits for whoever holds it, and is held up by no other."""
    ada, bob, cyd, _, _ = village
    lens, trace = base / "lens", base / "shots"
    lens.write_text("glass")
    lens.chmod(0o644)
    offered(bob, base, "shoot", "--needs", "lens", "--slots", "4", seen_by=ada)
    until(lambda: ("shoot", "bob") in known(cyd), "cyd knows of it")
    bob.ok("offer", f"lens={lens}", "cpu=1", "mem=256M", "--to", "ada", "--to", "cyd")
    with ada.grid() as one, cyd.grid() as other, ThreadPoolExecutor(2) as pool:
        shots = [pool.submit(grid.capability("shoot"), str(trace), 0.5) for grid in (one, other)]
        assert sorted(len(shot.result()) for shot in shots) == [10, 20]
    assert trace.read_text() == "begin end begin end "
    held = [lease for lease in bob.api.leases() if lease.purpose == "capability"]
    assert {lease.holder for lease in held} == {"ada", "cyd"} and all("lens" in lease.amounts for lease in held)


def test_a_capability_outlives_its_daemon(village: list[RealPeer], base: Path, grid: croft.Grid) -> None:
    """F2: what was offered is offered again after a restart, and listed among the offers."""
    ada, _, cyd, _, _ = village
    offered(cyd, base, "pid", "--name", "lasting", seen_by=ada)
    cyd.stop()
    cyd.start()
    peers.await_links([ada, cyd])

    assert any(one["name"] == "lasting" for one in cyd.json("offer", "list")["capabilities"])
    assert until(lambda: grid.capability("lasting")(), "cyd serves it again")


def test_another_provider_answers_when_the_first_is_gone(village: list[RealPeer], base: Path, grid: croft.Grid) -> None:
    """F2: provider killed → other one; what may have run is made again only if it may be, and the caller is told."""
    ada, bob, cyd, _, _ = village
    for peer in (bob, cyd):
        offered(peer, base, "slow_note", "--name", "twice", "--idempotent", seen_by=ada)
        offered(peer, base, "slow_note", "--name", "once", seen_by=ada)

    said = ada.croft("call", "once", f"path={base / 'first'}", "before_s=0")
    assert said.stderr == f"Answered by {said.stdout}"
    victim, answer = killed_meanwhile(grid, "twice", base, [bob, cyd])
    assert answer == ({"bob", "cyd"} - {victim.name}).pop()
    assert sorted((base / "twice").read_text().split()) == ["bob", "cyd"]
    assert grid.capability("once")(str(base / "now"), 0.0) == answer

    victim.start()
    peers.await_links([ada, bob, cyd])
    victim, answer = killed_meanwhile(grid, "once", base, [bob, cyd])
    assert isinstance(answer, CallLost) and answer.may_have_run and answer.provider == victim.name
    assert "may have run" in str(answer)
    assert (base / "once").read_text().split() == [victim.name]
    victim.start()
    peers.await_links([ada, bob, cyd])


def killed_meanwhile(grid: croft.Grid, name: str, base: Path, providers: list[RealPeer]) -> tuple[RealPeer, Any]:
    """Calls a slow capability, and kills whoever runs it; who that was, and what came of the call."""
    trace = base / name
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(grid.capability(name), str(trace), 2.0)
        runner = until(lambda: trace.exists() and trace.read_text().split(), f"{name} runs")[0]
        victim = next(peer for peer in providers if peer.name == runner)
        victim.kill()
        try:
            return victim, answer.result()
        except croft.CroftError as error:
            return victim, error
