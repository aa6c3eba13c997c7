"""WebAssembly in a box of each kind, the one for machines that hold nothing else among them: what gets out of none.

The last kind has no help of the kernel: what holds there is wasmtime, and that nothing native is ever started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from croft.adapters.box_process import ProcessSandbox
from croft.adapters.wasm_sandbox import WasmSandbox
from croft.compute.wasm_runner import CANNOT_START_CODE, TRAPPED_CODE
from croft.compute.worker_messages import (
    WASM_MEMORY_VARIABLE,
    CommandExited,
    FileBytes,
    FileEnd,
    FileFailed,
    FilePut,
    GetFile,
    Output,
    PutFile,
    RunCommand,
)
from croft.errors import Refused
from croft.model.isolation import Grade, Isolation
from support.boxes import CONFINING_KINDS, Peer, open_peer, sandbox_of, worker_spec
from support.wasm import ECHO, GROW, LOOP, NOTHING, component, links, opens

MEMORY_BYTES = 64 << 20
NO_SUCH_FILE, NOT_PERMITTED, NOT_CAPABLE = 44, 63, 76
"""What WASI says."""


@pytest.fixture(params=[*CONFINING_KINDS, "wasm alone"])
def sandbox(request: pytest.FixtureRequest) -> ProcessSandbox:
    return WasmSandbox(Isolation(Grade.D), None) if request.param == "wasm alone" else sandbox_of(request.param)


def in_box(sandbox: ProcessSandbox, folder: Path, body: Callable[[Peer], Awaitable[None]]) -> None:
    async def run() -> None:
        variables = {**worker_spec(None).environment, WASM_MEMORY_VARIABLE: str(MEMORY_BYTES)}
        async with open_peer(sandbox, folder, is_wasm=True, environment=variables) as peer:
            await body(peer)

    folder.mkdir(exist_ok=True)
    asyncio.run(run())


async def put(peer: Peer, name: str, data: bytes) -> None:
    for message in (PutFile(name), FileBytes(data), FileEnd()):
        await peer.send(message)
    assert isinstance(await peer.receive(), FilePut)


async def command(peer: Peer, message: RunCommand) -> tuple[bytes, bytes, CommandExited]:
    await peer.send(message)
    printed = {1: b"", 2: b""}
    while not isinstance(answer := await peer.receive(), CommandExited):
        assert isinstance(answer, Output), answer
        printed[answer.descriptor] += answer.data
    return printed[1], printed[2], answer


async def ran(peer: Peer, program: bytes, **how: object) -> tuple[bytes, bytes, CommandExited]:
    await put(peer, "it.wasm", program)
    return await command(peer, RunCommand(["it.wasm"], {}, is_wasm=True, **how))  # type: ignore[arg-type]  # by name


def test_a_program_has_its_arguments_variables_input_and_exit_code(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        await put(peer, "echo.wasm", ECHO)
        await put(peer, "given", b"piped")
        message = RunCommand(["echo.wasm", "one", "two"], {"WORD": "x"}, stdin="given", is_wasm=True)
        out, err, ended = await command(peer, message)

        assert out == b"echo.wasm\0one\0two\0piped", (err, ended)
        assert err == b"WORD=x\0"  # and nothing of the box's own
        assert ended == CommandExited(7)

    in_box(sandbox, tmp_path / "job", body)


def test_a_program_reads_and_writes_its_own_folder_by_either_name(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        await put(peer, "data", b"content")
        told = await ran(peer, opens("data"))
        assert told[0] == b"content", told
        assert (await ran(peer, opens("new", writes=True)))[2] == CommandExited(0)
        await peer.send(GetFile("new"))
        assert await peer.receive() == FileBytes(b"made")

    in_box(sandbox, tmp_path / "job", body)


def test_a_component_runs_and_says_whether_all_went_well(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        assert (await ran(peer, component(0)))[2] == CommandExited(0)
        assert (await ran(peer, component(1)))[2] == CommandExited(1)

    in_box(sandbox, tmp_path / "job", body)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "../../../../../../etc/passwd", "a/../../outside"])
def test_no_file_outside_can_be_read_or_made(path: str, sandbox: ProcessSandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")

    async def body(peer: Peer) -> None:
        for program in (opens(path), opens(path, writes=True)):
            out, _, ended = await ran(peer, program)
            assert ended.exit_code in (NO_SUCH_FILE, NOT_PERMITTED, NOT_CAPABLE)
            assert out == b""

    in_box(sandbox, tmp_path / "job", body)
    assert (tmp_path / "outside").read_text() == "secret"


def test_a_link_that_a_program_makes_leads_nowhere(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")

    async def body(peer: Peer) -> None:
        assert (await ran(peer, links("/etc/passwd", "absolute")))[2].exit_code == NOT_PERMITTED
        await ran(peer, links("../outside", "relative"))
        out, _, ended = await ran(peer, opens("relative"))
        assert ended.exit_code in (NO_SUCH_FILE, NOT_PERMITTED) and out == b""
        for name in ("absolute", "relative"):
            await peer.send(GetFile(name))
            assert isinstance(await peer.receive(), FileFailed)

    in_box(sandbox, tmp_path / "job", body)


def test_a_loop_without_end_stops_when_its_fuel_or_its_time_is_over(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        _, said, ended = await ran(peer, LOOP, fuel=1_000_000)
        assert ended == CommandExited(TRAPPED_CODE)
        assert said == b"croft: it.wasm used up its fuel of 1,000,000\n"
        _, _, ended = await ran(peer, LOOP, time_s_max=0.3)
        assert "limit of 0.3 s" in ended.reason

    in_box(sandbox, tmp_path / "job", body)


def test_a_program_gets_no_more_memory_than_its_limit(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        _, said, ended = await ran(peer, GROW)
        assert ended == CommandExited(TRAPPED_CODE)
        assert b"unreachable" in said  # it was told no, and gave up
        assert (await ran(peer, NOTHING))[2] == CommandExited(0)
        assert peer.box.usage().memory_peak_bytes < MEMORY_BYTES * 3

    in_box(sandbox, tmp_path / "job", body)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\necho native\n", b"(module)", b"\0asm\1\0\0\0junk", b"\x7fELF"])
def test_what_is_no_webassembly_is_not_run(data: bytes, sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        out, said, ended = await ran(peer, data)
        assert out == b"" and ended.exit_code == CANNOT_START_CODE
        assert said.startswith(b"croft: it.wasm ")

    in_box(sandbox, tmp_path / "job", body)


@pytest.mark.parametrize(
    "argv",
    [
        ["/bin/sh", "-c", "echo native"],
        ["sh", "-c", "echo native"],
        ["{python}", "-c", "print('native')"],
        ["../job/it.wasm"],
        ["-c", "print('native')"],
        ["/proc/self/exe"],
        [],
    ],
)
def test_nothing_native_is_started_whatever_is_asked(argv: list[str], sandbox: ProcessSandbox, tmp_path: Path) -> None:
    async def body(peer: Peer) -> None:
        for is_wasm in (True, False):
            out, _, ended = await command(peer, RunCommand(argv, {}, is_wasm=is_wasm))
            assert out == b"" and ended.exit_code != 0

    in_box(sandbox, tmp_path / "job", body)


def test_no_variable_reaches_a_native_process(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    """A library that the loader is told of would run as the peer's user, before any WebAssembly."""

    async def body(peer: Peer) -> None:
        await put(peer, "evil.so", b"not even a library")
        await put(peer, "echo.wasm", ECHO)
        evil = {"LD_PRELOAD": "./evil.so", "PYTHONPATH": ".", "PYTHONHOME": ".", "LD_LIBRARY_PATH": "."}
        out, err, ended = await command(peer, RunCommand(["echo.wasm"], evil, is_wasm=True))
        assert out == b"echo.wasm\0" and ended == CommandExited(7)
        # The program itself may have any; had the loader seen them, it would have complained here.
        assert err == b"".join(f"{name}={value}\0".encode() for name, value in evil.items())

    in_box(sandbox, tmp_path / "job", body)


def test_the_box_for_webassembly_alone_is_opened_for_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(Refused, match="cannot hold foreign native code"):
            await WasmSandbox(Isolation(Grade.D, "why"), None).open(worker_spec(None))

    asyncio.run(run())
