"""Commands as tasks of a detached job: what comes home of them, and what a peer that lies gets written."""

from __future__ import annotations

from pathlib import Path

import pytest

from croft.cli.detached import show
from croft.client.detached_command import CommandDone, ending, run_command
from croft.client.durable import Done


def test_a_command_sees_its_files_and_gives_what_it_wrote() -> None:
    done = run_command(
        "the item",
        ["sh", "-c", "./bin/copy < deep/in > out; mkdir d; echo 1 > d/1; echo $KEY; cat >&2"],
        {"KEY": "value"},
        [("deep/in", False, b"ink"), ("bin/copy", True, b"#!/bin/sh\ncat")],
        b"from stdin",
        ["out", "d/", "none", "e/"],
    )

    assert (done.item, done.exit_code, done.stdout, done.stderr) == ("the item", 0, b"value\n", b"from stdin")
    assert done.files == [("out", False, b"ink"), ("d/1", False, b"1\n")]
    assert done.missing == ["none is no file of the command", "e/ holds no file"]


def test_a_link_out_of_the_folder_brings_nothing_home() -> None:
    done = run_command("", ["ln", "-s", "/etc/passwd", "out"], {}, [], b"", ["out"])

    assert done.files == [] and done.missing == ["out is no file of the command"]


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["no-such-program"], 127, "exited with 127"),
        (["/"], 126, "exited with 126"),
        (["sh", "-c", "kill -9 $$"], 137, "was ended by SIGKILL"),
        (["sh", "-c", "exit 255"], 255, "exited with 255"),
    ],
)
def test_how_a_command_ended_is_told(argv: list[str], code: int, text: str) -> None:
    done = run_command("", argv, {}, [], b"", [])

    assert (done.exit_code, ending(done.exit_code)) == (code, text)
    assert (b"cannot start" in done.stderr) == (code in (126, 127))


def test_no_name_of_an_output_leads_out_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["../escaped", "/etc/escaped", "a/../../../escaped", "", ".", "a\0b", "good/one"]
    done = CommandDone("x", 0, b"", b"", [(name, True, b"ink") for name in names], [])

    assert not show(Done(0, 0, b"", "mallory"), done, tmp_path / "made", None)

    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert written == [f"made/1/{name}" for name in ("exit", "files/good/one", "item", "stderr", "stdout")]
    assert capsys.readouterr().err.count("on mallory calls an output") == 6
