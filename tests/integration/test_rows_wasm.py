"""WebAssembly programs on real peers, one of which can hold no native code at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import peers, without_boxes
from support.peers import RealPeer, two_lines
from support.wasm import ECHO, GROW, LOOP, component, opens, save


@pytest.fixture(scope="module")
def trio() -> Iterator[list[RealPeer]]:
    """Two peers that hold everything, and `cyd`, where neither namespaces nor Landlock are to be had."""
    with peers.homes() as base:
        ada, bob = peers.community(base, ["ada", "bob"])
        cyd = peers.make(base, "cyd", wrap=[sys.executable, without_boxes.__file__])
        cyd.start()
        cyd.api.join(ada.api.invite(is_spoken=False).line)
        peers.await_links([ada, bob, cyd])
        yield [ada, bob, cyd]


@pytest.mark.parametrize("name", ["bob", "cyd"])
def test_a_program_runs_on_every_grade_with_its_arguments_input_and_files(
    name: str, trio: list[RealPeer], tmp_path: Path
) -> None:
    save(tmp_path, "echo.wasm", ECHO)
    save(tmp_path, "make.wasm", opens("made.txt", writes=True))

    echoed = trio[0].croft("run", "--on", name, "-I", "--", "echo.wasm", "one", "two", input="piped", cwd=tmp_path)
    trio[0].ok("run", "--on", name, "-o", "made.txt", "--", str(tmp_path / "make.wasm"), cwd=tmp_path)

    assert (echoed.stdout, echoed.returncode) == ("echo.wasm\0one\0two\0piped", 7)
    assert (tmp_path / "made.txt").read_text() == "made"


def test_a_machine_that_holds_no_native_code_says_so_and_runs_webassembly_alone(
    trio: list[RealPeer], tmp_path: Path
) -> None:
    save(tmp_path, "it.wasm", component(0))

    error, _ = two_lines(trio[0].croft("run", "--on", "cyd", "--", "true"))
    trio[0].ok("run", "--on", "cyd", "--", "it.wasm", cwd=tmp_path)

    assert "cyd: this machine holds foreign code at isolation grade D, its owner requires B" in error


@pytest.mark.parametrize("name", ["bob", "cyd"])
def test_fuel_time_and_memory_end_a_program_and_are_named(name: str, trio: list[RealPeer], tmp_path: Path) -> None:
    save(tmp_path, "loop.wasm", LOOP)
    save(tmp_path, "grow.wasm", GROW)

    burned = trio[0].croft("run", "--on", name, "--fuel", "1000000", "--", "loop.wasm", cwd=tmp_path)
    late = trio[0].croft("run", "--on", name, "--time", "0.5", "--", "loop.wasm", cwd=tmp_path)
    grown = trio[0].croft("run", "--on", name, "--mem", "200M", "--", "grow.wasm", cwd=tmp_path)

    assert (burned.returncode, burned.stderr) == (134, "croft: loop.wasm used up its fuel of 1,000,000\n")
    assert late.returncode == 128 + 9 and "ran longer than its limit of 0.5 s" in late.stderr
    assert grown.returncode == 134 and "unreachable" in grown.stderr


@pytest.mark.parametrize("name", ["bob", "cyd"])
def test_no_file_of_the_lender_is_seen(name: str, trio: list[RealPeer], tmp_path: Path) -> None:
    save(tmp_path, "thief.wasm", opens("../../../../../../../../etc/passwd"))

    ended = trio[0].croft("run", "--on", name, "--", "thief.wasm", cwd=tmp_path)

    assert (ended.returncode, ended.stdout) == (63, "")  # not permitted


def test_many_items_are_done_by_webassembly_on_all_peers(trio: list[RealPeer], tmp_path: Path) -> None:
    save(tmp_path, "echo.wasm", ECHO)
    for name in ("bob", "cyd"):
        said = trio[0].croft("map", "-k", "--on", name, "--", "echo.wasm", "{}", ":::", "a", "b", cwd=tmp_path)
        assert said.stdout == "echo.wasm\0a\0echo.wasm\0b\0"
        assert said.returncode == 2  # each of them ends with 7


def test_what_cannot_be_meant_is_said_in_two_lines(trio: list[RealPeer], tmp_path: Path) -> None:
    save(tmp_path, "it.wasm", ECHO)

    assert two_lines(trio[0].croft("run", "--", "none.wasm", cwd=tmp_path))[0] == "there is no file none.wasm"
    assert "burn fuel" in two_lines(trio[0].croft("run", "--fuel", "5", "--", "true"))[0]
    assert (
        "uses no packages" in two_lines(trio[0].croft("run", "--with", "zstandard", "--", "it.wasm", cwd=tmp_path))[0]
    )
