"""The Python environment of a job comes along, shown by real daemons: packages that their Pythons do not have."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import croft
from croft.client.command import CommandEvents, run_command
from croft.client.environments import resolve
from croft.compute.environment import Environment
from croft.control.work_messages import OpenCommandJob
from croft.errors import Refused
from support import peers
from support.peers import RealPeer, two_lines
from support.wheels import make

THIS = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture(scope="module")
def trio() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd"])


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """`tiny` 1.0, which needs `deep` 1.0: no Python has them."""
    folder = tmp_path / "wheels"
    make(folder, "tiny", {"tiny/__init__.py": "from deep import VALUE\n"}, requires=["deep"])
    make(folder, "deep", {"deep.py": f"VALUE = {str(tmp_path)!r}\n"})
    return folder


def value(_: int = 0) -> tuple[str, str]:
    import tiny  # type: ignore[import-not-found]  # where this runs it is there

    return tiny.VALUE, tiny.__file__


def built(peer: RealPeer) -> dict[str, int]:
    """The environments that a peer has built, and which folder each of them is."""
    return {place.name: place.stat().st_ino for place in (peer.files.environments / "built").iterdir()}


def kept(peer: RealPeer) -> list[Path]:
    """The wheels that a peer has."""
    return sorted((peer.files.environments / "wheels").iterdir())


def test_a_function_imports_on_other_peers_what_only_the_submitter_has(
    trio: list[RealPeer], wheels: Path, tmp_path: Path
) -> None:
    ada, bob, cyd = trio
    (tmp_path / "requirements.txt").write_text("tiny==1.0\ndeep==1.0\n")
    with ada.grid() as grid:
        everywhere = grid.map(value, range(40), environment=str(tmp_path / "requirements.txt"), avoid="ada")
        results = set(everywhere)
        with pytest.raises(ModuleNotFoundError):
            list(grid.map(value, [1], on="bob"))

    assert {told for told, _ in results} == {str(tmp_path)}
    for _, place in results:
        assert any(place.startswith(str(peer.files.environments / "built")) for peer in (bob, cyd))


def test_the_second_run_uses_what_is_built_also_for_another_submitter(trio: list[RealPeer], wheels: Path) -> None:
    ada, bob, cyd = trio
    with ada.grid() as grid:
        list(grid.map(value, [1], environment=str(wheels), on="bob"))
    before = built(bob)
    for wheel in kept(bob):
        wheel.unlink()

    with cyd.grid() as grid:
        told = list(grid.map(value, [1], environment=[str(path) for path in wheels.glob("*.whl")], on="bob"))

    assert told[0][0] == str(wheels.parent)
    assert built(bob) == before
    assert kept(bob) == []


def test_a_decorator_and_a_connection_may_name_the_environment(trio: list[RealPeer], wheels: Path) -> None:
    decorated = croft.task(environment=str(wheels), on="bob")(value)

    with trio[0].grid() as grid:
        assert grid.submit(decorated).result()[0] == str(wheels.parent)
    with croft.connect(trio[0].home, environment=str(wheels)) as grid:
        assert next(iter(grid.map(value, [1], on="cyd")))[0] == str(wheels.parent)


def test_an_asyncio_program_and_a_detached_job_bring_theirs_too(trio: list[RealPeer], wheels: Path) -> None:
    async def program() -> str:
        async with await croft.connect_async(trio[0].home) as grid:
            told = [result async for result in grid.map(value, [1], environment=str(wheels), on="bob")]
            return str(told[0][0])

    assert asyncio.run(program()) == str(wheels.parent)
    with trio[0].grid() as grid:
        job = grid.map(value, range(3), detach=True, environment=str(wheels), on="cyd")
        assert [told for told, _ in job.results()] == [str(wheels.parent)] * 3


def test_native_packages_that_are_installed_here_come_along(trio: list[RealPeer]) -> None:
    def compressed(_: int) -> tuple[bytes, str]:
        import zstandard

        return zstandard.decompress(zstandard.compress(b"data")), zstandard.__file__

    with trio[0].grid() as grid:
        ((data, place),) = grid.map(compressed, [1], environment="zstandard", on="bob")

    assert data == b"data"
    assert place.startswith(str(trio[1].files.environments / "built"))


def test_commands_find_the_packages_and_the_python_that_they_are_for(
    trio: list[RealPeer], wheels: Path, tmp_path: Path
) -> None:
    (tmp_path / "it.py").write_text("import sys, tiny; print(tiny.VALUE, *sys.argv[1:], sys.version_info[:2])\n")
    version = f"({sys.version_info.major}, {sys.version_info.minor})"

    printed = trio[0].ok(
        *("run", "--with", str(wheels), "--on", "bob", "-i", str(tmp_path / "it.py")), "--", "python", "it.py", "a"
    )
    mapped = trio[0].ok(
        *("map", "-k", "--with", str(wheels), "--avoid", "ada", "--"),
        *("python", "-c", "import tiny; print(tiny.VALUE, {})", ":::", "1", "2"),
    )

    assert printed == f"{tmp_path} a {version}\n"
    assert mapped == f"{tmp_path} 1\n{tmp_path} 2\n"


def test_a_wheel_that_was_damaged_on_the_lenders_disk_is_fetched_again(trio: list[RealPeer], tmp_path: Path) -> None:
    ada, bob, _ = trio
    wheel = make(tmp_path, "tiny", {"tiny.py": f"VALUE = {str(tmp_path)!r}\n"}, version="7.0")
    (described,) = resolve(ada.files, [str(wheel)]).wheels
    (bob.files.environments / "wheels" / described.digest.hex()).write_bytes(b"not that wheel")

    with ada.grid() as grid:
        ((told, _),) = grid.map(value, [1], environment=str(wheel), on="bob")

    assert told == str(tmp_path)
    assert "was damaged on this disk" in bob.log()


@pytest.fixture(scope="module")
def refusals(trio: list[RealPeer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes of jobs with environments that no peer takes, all at the same time: a peer is asked again for 3 s."""
    ada, folder = trio[0], tmp_path_factory.mktemp("bad")
    tampered = make(folder, "tampered", {"tampered.py": "SAFE = True\n"})
    place = ada.files.environments / "wheels" / resolve(ada.files, [str(tampered)]).wheels[0].digest.hex()
    data = bytearray(place.read_bytes())
    data[50] ^= 1
    place.write_bytes(data)
    wheels = {
        "tampered": tampered,
        "outside": make(folder, "outside", {"../../../../../../tmp/croft-outside.py": ""}),
        "bomb": make(folder, "bomb", {"zeros.bin": bytes(300 << 20)}),
        "foreign": make(folder, "num", {"num.py": ""}, tag=f"{THIS}-{THIS}-manylinux_2_17_riscv64"),
    }

    def refused(wheel: Path) -> str:
        with pytest.raises(Refused) as caught, ada.grid() as grid:
            list(grid.map(value, [1], environment=str(wheel), on=["bob", "cyd"]))
        return caught.value.message

    with ThreadPoolExecutor(len(wheels)) as pool:
        return dict(zip(wheels, pool.map(refused, wheels.values()), strict=True))


def test_a_tampered_wheel_is_refused_and_its_sender_named(trio: list[RealPeer], refusals: dict[str, str]) -> None:
    said = refusals["tampered"]

    assert "bob: the wheel tampered-1.0-py3-none-any.whl did not come: ada" in said
    assert "it sent as tampered-1.0-py3-none-any.whl what is not that wheel" in said
    assert "peer ada" in trio[1].log() and "broke the protocol" in trio[1].log()


def test_hostile_wheels_are_refused_and_leave_nothing(trio: list[RealPeer], refusals: dict[str, str]) -> None:
    assert "bob: the wheel outside-1.0-py3-none-any.whl is refused:" in refusals["outside"]
    assert "could lead out of its folder" in refusals["outside"]
    assert "bob: the wheel bomb-1.0-py3-none-any.whl is refused: unpacked, it takes more than" in refusals["bomb"]
    assert not Path("/tmp/croft-outside.py").exists()
    for peer in trio[1:]:
        assert peer.job_folders() == []
        places = [peer.files.environments / "built" / name for name in built(peer)]
        assert not [place for place in places if list(place.glob("zeros.bin")) or list(place.glob("outside-*"))]


def test_a_wrong_architecture_is_named_by_every_peer_before_anything_runs(refusals: dict[str, str]) -> None:
    for name in ("bob", "cyd"):
        assert (
            f"{name}: num is there as a wheel for {THIS}-{THIS}-manylinux_2_17_riscv64, this peer takes {THIS}-"
            in (refusals["foreign"])
        )


def test_a_wrong_python_is_named_before_anything_runs(trio: list[RealPeer], wheels: Path) -> None:
    environment = msgspec.structs.replace(resolve(trio[0].files, [str(wheels)]), python="3.99")
    opening = OpenCommandJob(["true"], {}, [], [], [], [], packages=environment)

    with pytest.raises(Refused, match=r"bob: this peer runs Python 3\.\d+, the environment is made for Python 3\.99"):
        asyncio.run(run_command(trio[0].files.work_socket, opening, CommandEvents(lambda *_: None)))


def test_wheels_that_were_not_put_in_are_named_by_ones_own_peer(trio: list[RealPeer], wheels: Path) -> None:
    known = resolve(trio[0].files, [str(wheels)])
    unknown = Environment(known.python, [msgspec.structs.replace(known.wheels[0], digest=bytes(32))])
    opening = OpenCommandJob(["true"], {}, [], [], [], [], packages=unknown)

    with pytest.raises(croft.Failed, match=r"the wheel deep-1\.0-py3-none-any\.whl is not in this peer's cache"):
        asyncio.run(run_command(trio[0].files.work_socket, opening, CommandEvents(lambda *_: None)))


def test_what_cannot_be_found_here_is_said_in_two_lines(trio: list[RealPeer], tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("tiny==9.0\n")

    error, hint = two_lines(trio[0].croft("run", "--with", str(tmp_path / "lock.txt"), "--", "true"))
    other, _ = two_lines(trio[0].croft("map", "--with", "no-such-package", "--", "true", ":::", "1"))

    assert error == f"wheels of {tmp_path / 'lock.txt'} are not on this machine: tiny 9.0"
    assert hint.startswith("Get them: pip download")
    assert other == "the environment needs no-such-package, which is not installed here"
