"""Row F4: a pipeline over several peers, whose data goes from one to the next and never by way of the submitter."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import NamespaceHost, bridged

import croft
from croft.errors import BadArgument, CapabilityFailed, NotFound
from support import peers
from support.peers import RealPeer, two_lines, until

ITEM_BYTES = 10_000_000
ITEMS = 30
SUBMITTER_BYTES_MAX = 2_000_000
STAGES = f'''
import hashlib, os, time
from pathlib import Path

LOG = Path(__file__).with_name("log")

def noted(stage, what):
    with LOG.open("a") as log:
        log.write(f"{{stage}} {{what}}\\n")

def make(number: int) -> bytes:
    """Makes {ITEM_BYTES} bytes out of a number."""
    noted("make", number)
    return hashlib.sha256(b"%d" % number).digest() * ({ITEM_BYTES} // 32)

def turn(data: bytes) -> bytes:
    """The same bytes, the last first."""
    turned = data[::-1]
    noted("turn", hashlib.sha256(data).hexdigest())
    return turned

def digest(data: bytes) -> str:
    """What sha256 says of it."""
    noted("digest", hashlib.sha256(data).hexdigest())
    return hashlib.sha256(data).hexdigest()

def picky(number: int, least: int = 0) -> int:
    """Refuses 3."""
    noted("picky", number)
    if number == 3:
        raise ValueError("not this one")
    return number + least

def slow(number: int) -> int:
    """Takes until there is a file `go`."""
    while not LOG.with_name("go").exists():
        time.sleep(0.02)
    noted("slow", number)
    return number * 10

def shout(page: Path, mark: str = "!") -> str:
    """What a file says, louder."""
    return page.read_text().upper() + mark
'''


def expected(number: int) -> str:
    data = hashlib.sha256(b"%d" % number).digest() * (ITEM_BYTES // 32)
    return hashlib.sha256(data[::-1]).hexdigest()


def traffic(host: NamespaceHost) -> int:
    """What has gone over a host's wire, both ways."""
    [line] = [line for line in host.run("cat", "/proc/net/dev").splitlines() if line.strip().startswith("eth0:")]
    counters = line.partition(":")[2].split()
    return int(counters[0]) + int(counters[8])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "stages.py"
    path.write_text(STAGES)
    return path


@pytest.fixture(scope="module")
def lab(stages: Path) -> Iterator[tuple[list[RealPeer], list[NamespaceHost]]]:
    with bridged(5) as hosts, peers.homes() as base:
        names = ["ada", "one", "two", "twin", "three"]
        made = peers.community(base, names, [hosts[number] for number in range(5)])
        ada, one, two, twin, three = made
        for peer, functions in ((one, ["make"]), (two, ["turn"]), (twin, ["turn"]), (three, ["digest"])):
            for function in functions:
                peer.ok("offer", "capability", f"{stages}:{function}")
        for function in ("picky", "slow", "shout"):
            one.ok("offer", "capability", f"{stages}:{function}")
        until(lambda: len(ada.api.capabilities()) == 7, "ada to know of all")
        yield made, [hosts[number] for number in range(5)]


def runs(stages: Path, stage: str) -> Counter[str]:
    lines = [line.split() for line in stages.with_name("log").read_text().splitlines()]
    return Counter(what for name, what in lines if name == stage)


def test_300_mb_go_through_three_peers_and_hardly_a_byte_by_way_of_the_submitter_also_when_one_dies(
    lab: tuple[list[RealPeer], list[NamespaceHost]], stages: Path
) -> None:
    """F4."""
    (ada, _, two, twin, _), hosts = lab
    before = traffic(hosts[0])
    with croft.connect(ada.home) as grid:
        stage = grid.pipeline().then("make").then("turn").then("digest")
        running = stage.run(range(ITEMS))
        until(lambda: running.status().done >= 5, "some to get through")
        two.kill()
        assert list(running.results()) == [expected(number) for number in range(ITEMS)]
        status = running.status()
    assert traffic(hosts[0]) - before < SUBMITTER_BYTES_MAX
    assert set(runs(stages, "make").values()) == {1} and len(runs(stages, "make")) == ITEMS
    assert set(runs(stages, "digest").values()) == {1} and len(runs(stages, "digest")) == ITEMS
    assert len(runs(stages, "turn")) == ITEMS
    assert {peer.name for peer in status.stages[1].peers} == {"two", "twin"}
    assert (status.state, status.done, status.failed) == ("done", ITEMS, 0)
    until(lambda: set(ada.api.pipeline(running.id).kept_bytes) <= {"ada"}, "what was kept on the way to be released")
    two.start()
    twin.kill()
    twin.start()


def test_a_pipeline_goes_on_without_its_program_and_after_its_peer_was_killed(
    lab: tuple[list[RealPeer], list[NamespaceHost]], stages: Path
) -> None:
    ada = lab[0][0]
    started = json.loads(
        ada.croft("pipeline", "run", "stdin | slow | picky least=5", "--detach", "--json", input="1\n2\n4\n").stdout
    )
    until(lambda: ada.api.pipeline(started["pipeline"]).stages[0].running > 0, "it to begin")
    ada.kill()
    ada.start()
    stages.with_name("go").touch()
    assert ada.ok("pipeline", "results", started["pipeline"]).split() == ["15", "25", "45"]
    shown = ada.ok("pipeline", "show", started["pipeline"])
    assert "3 of 3 through" in shown and "picky" in shown and "one" in shown
    assert started["pipeline"] in ada.ok("pipeline", "list")
    ada.ok("pipeline", "rm", started["pipeline"])
    assert ada.json("pipeline", "list")["pipelines"][:1] != [started["pipeline"]]


def test_an_item_that_fails_is_named_and_ends_alone(lab: tuple[list[RealPeer], list[NamespaceHost]]) -> None:
    ada = lab[0][0]
    with croft.connect(ada.home) as grid:
        running = grid.pipeline().then("picky", least=1).run([1, 3, 5])
        outcomes = dict(running.outcomes())
        assert (outcomes[0], outcomes[2]) == (2, 6)
        assert isinstance(outcomes[1], CapabilityFailed) and "ValueError: not this one" in str(outcomes[1])
        with pytest.raises(CapabilityFailed, match="item 1: `picky` failed"):
            list(running.results())
    ended = ada.croft("pipeline", "run", "stdin | picky", input="1\n3\n")
    assert ended.returncode != 0 and ended.stdout.split() == ["1"] and "not this one" in ended.stderr


def test_programs_that_await_get_the_same(lab: tuple[list[RealPeer], list[NamespaceHost]]) -> None:
    ada = lab[0][0]

    async def story() -> None:
        async with await croft.connect_async(ada.home) as grid:
            running = await grid.pipeline().then("picky", least=1).run([1, 3, 5])
            outcomes = {number: outcome async for number, outcome in running.outcomes()}
            assert (outcomes[0], outcomes[2]) == (2, 6) and isinstance(outcomes[1], CapabilityFailed)
            assert (await running.wait()).failed == 1
            again = await grid.pipeline_run(running.id)
            with pytest.raises(CapabilityFailed, match="not this one"):
                [value async for value in again.results()]
            await again.forget()
            with pytest.raises(NotFound):
                await again.status()
            left = await (await grid.leave("picky", of="one"))(7)
            assert await left.result(30.0) == 7
            assert (await (await grid.left_call(left.id)).status()).state == "done"

    asyncio.run(story())


def test_files_go_in_and_results_come_out_as_files(
    lab: tuple[list[RealPeer], list[NamespaceHost]], tmp_path: Path
) -> None:
    ada = lab[0][0]
    for name in ("b.page", "a.page"):
        (tmp_path / name).write_text(f"text of {name}")
    ada.ok("pipeline", "run", f"{tmp_path}/*.page | shout@one mark=?", "-o", str(tmp_path / "out"))
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "a.page.txt": "TEXT OF A.PAGE?\n",
        "b.page.txt": "TEXT OF B.PAGE?\n",
    }
    plan = tmp_path / "louder.toml"
    plan.write_text(f'items = "{tmp_path}/a.page"\n[[stage]]\ncall = "shout"\nwith = {{ mark = "…" }}\n')
    assert ada.ok("pipeline", "run", str(plan)) == "TEXT OF A.PAGE…\n"


def test_whoever_waits_for_consent_is_told_so(lab: tuple[list[RealPeer], list[NamespaceHost]]) -> None:
    ada, one = lab[0][:2]
    rule = json.loads(one.ok("consent", "picky", "--who", "ada", "--rule", "ask", "--json"))
    with subprocess.Popen(
        ada.command("pipeline", "run", "stdin | picky"),
        env=ada.variables(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        running.stdin.write("1\n")
        running.stdin.close()
        assert running.stderr.readline() == "Waiting for the owner of one to allow it …\n"
        [waiting] = one.api.consent_queue()
        one.ok("consent", "allow", str(waiting.number))
        assert running.stdout.read() == "1\n"
        assert running.stderr.read().endswith("1 item, 1 stage\n")
    one.ok("consent", "rm", str(rule["number"]))


def test_bad_pipelines_are_refused_before_anything_runs(lab: tuple[list[RealPeer], list[NamespaceHost]]) -> None:
    ada = lab[0][0]
    with croft.connect(ada.home) as grid:
        with pytest.raises(NotFound, match="nobody here offers `maek`"):
            grid.pipeline().then("maek")
        with pytest.raises(BadArgument, match="takes no `lest`"):
            grid.pipeline().then("picky", lest=1)
        with pytest.raises(BadArgument, match="`least` is text"):
            grid.pipeline().then("picky", least="many")
        with pytest.raises(BadArgument, match="`number`"):
            grid.pipeline().then("picky").run(["x"])
    for what, error in (
        ("stdin", "a source and stages"),
        ("nothing/*.wav | make", "no file `nothing/*.wav`"),
        ("stdin | picky 5", "`5` is no argument"),
        ("missing.toml", "cannot be read"),
    ):
        first, second = two_lines(ada.croft("pipeline", "run", what, input=""))
        assert error in first and second, what
