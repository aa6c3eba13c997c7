"""The command line, run as programs against real peers."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from croft.cli.main import COMMANDS
from support import peers
from support.peers import RealPeer, two_lines, until

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def pair() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob"])


@pytest.fixture
def ada(pair: list[RealPeer]) -> RealPeer:
    return pair[0]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with three small files."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("one.txt", "two words.txt", "three.tar.gz"), 1):
        (tmp_path / "in" / name).write_text(f"{number}\n")
    return tmp_path


# --- croft map: marks and items --------------------------------------------------------------------------------------


def test_every_mark_is_filled_in(ada: RealPeer) -> None:
    said = ada.ok("map", "-k", "--", "echo", "{}|{.}|{/}|{//}|{/.}|{#}", ":::", "a/b.tar.gz", "plain", "x{#}y.z")

    assert said.splitlines() == [
        "a/b.tar.gz|a/b.tar|b.tar.gz|a|b.tar|1",
        "plain|plain|plain|.|plain|2",
        "x{#}y.z|x{#}y|x{#}y.z|.|x{#}y|3",
    ]


def test_an_item_comes_last_where_no_mark_is(ada: RealPeer) -> None:
    assert ada.ok("map", "-k", "--", "echo", "got", ":::", "a", "b c").splitlines() == ["got a", "got b c"]


def test_a_command_of_one_word_is_a_shell_line_and_its_items_are_quoted(ada: RealPeer, work: Path) -> None:
    said = ada.ok("map", "-k", "--", "cat {} | tr -d '\\n'; echo {/.}", ":::", *files(work), cwd=work)

    assert said.splitlines() == ["1one", "2two words", "3three.tar"]


def files(work: Path) -> list[str]:
    return ["in/one.txt", "in/two words.txt", "in/three.tar.gz"]


def test_items_come_from_standard_input_too(ada: RealPeer) -> None:
    assert ada.ok("map", "-k", "--", "echo", "{}", input="a\n\nb b\nc").splitlines() == ["a", "b b", "c"]


def test_items_from_a_file_are_read_as_well(ada: RealPeer, tmp_path: Path) -> None:
    (tmp_path / "items").write_text("a\nb\n")
    with (tmp_path / "items").open() as items:
        ended = subprocess.run(
            ada.command("map", "-k", "--", "echo"), stdin=items, capture_output=True, text=True, env=ada.variables()
        )

    assert (ended.returncode, ended.stdout) == (0, "a\nb\n")


def test_a_slow_list_of_items_does_not_hold_up_the_lines_under_way(ada: RealPeer) -> None:
    running = subprocess.Popen(
        ada.command("map", "--", "echo", "{}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ada.variables(),
    )
    assert running.stdin is not None and running.stdout is not None
    running.stdin.write("first\n")
    running.stdin.flush()
    assert running.stdout.readline() == "first\n"
    assert running.communicate("second\n", timeout=20)[0] == "second\n"
    assert running.returncode == 0


def test_an_item_that_is_a_file_goes_along_and_an_output_comes_back_beside_it(ada: RealPeer, work: Path) -> None:
    ada.ok("map", "-o", "{.}.out", "--", "sh", "-c", "sed s/^/n/ '{}' > '{.}.out'", ":::", *files(work)[:2], cwd=work)

    assert (work / "in" / "one.out").read_text() == "n1\n"
    assert (work / "in" / "two words.out").read_text() == "n2\n"


def test_a_further_file_goes_along_with_every_line(ada: RealPeer, work: Path) -> None:
    (work / "more").write_text("more\n")

    assert ada.ok("map", "-k", "-i", "more", "--", "cat more; echo {}", ":::", "a", "b", cwd=work) == (
        "more\na\nmore\nb\n"
    )


# --- croft map: order, results, log, failures ------------------------------------------------------------------------


def test_order_is_kept_on_demand(ada: RealPeer) -> None:
    # The first line sleeps longest. Whichever ends first, they are printed as they were given.
    said = ada.ok("map", "-k", "-j", "4", "--", "sh", "-c", "sleep 0.{}; echo {}", ":::", "9", "1", "5")

    assert said.splitlines() == ["9", "1", "5"]


def test_one_line_at_a_time(ada: RealPeer) -> None:
    stamp = "date +%s%N; sleep 0.1; date +%s%N; true {}"

    moments = [int(line) for line in ada.ok("map", "-j", "1", "--", stamp, ":::", "a", "b", "c").split()]

    assert len(moments) == 6 and moments == sorted(moments)


def test_results_go_to_files(ada: RealPeer, tmp_path: Path) -> None:
    ended = ada.croft(
        *("map", "--results", "res", "--", "sh", "-c", "echo out {}; echo err {} >&2; exit {}", ":::", "0", "3"),
        cwd=tmp_path,
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    read = {
        f"{place.name}/{file.name}": file.read_text()
        for place in (tmp_path / "res").iterdir()
        for file in place.iterdir()
    }
    assert read == {
        "1/stdout": "out 0\n",
        "1/stderr": "err 0\n",
        "1/exit": "0\n",
        "1/item": "0\n",
        "2/stdout": "out 3\n",
        "2/stderr": "err 3\n",
        "2/exit": "3\n",
        "2/item": "3\n",
    }


def test_the_exit_code_counts_the_lines_that_failed(ada: RealPeer) -> None:
    assert ada.croft("map", "--", "sh", "-c", "exit {}", ":::", "0", "1", "2", "0", "255").returncode == 3


def test_a_run_that_was_cut_short_is_resumed_from_its_log(ada: RealPeer, tmp_path: Path) -> None:
    command = ["map", "--joblog", "log", "--resume", "--", "sh", "-c", "echo {}; test {} != b", ":::", "a", "b"]
    first = ada.croft(*command, cwd=tmp_path)
    again = ada.croft(*command, "c", cwd=tmp_path)

    assert first.returncode == 1 and sorted(first.stdout.split()) == ["a", "b"]
    assert again.returncode == 1 and sorted(again.stdout.split()) == ["b", "c"]
    header, *rows = (tmp_path / "log").read_text().splitlines()
    assert header.split("\t") == ["Seq", "Peer", "Seconds", "Exit", "Item"]
    logged = [(row.split("\t")[3], row.split("\t")[4]) for row in rows]
    assert sorted(logged) == [("0", "a"), ("0", "c"), ("1", "b"), ("1", "b")]
    assert {row.split("\t")[1] for row in rows} <= {"ada", "bob"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--", ":::", "a"],
        ["--resume", "--", "echo", ":::", "a"],
        ["-j", "0", "--", "echo", ":::", "a"],
        ["-i", "missing", "--", "echo", ":::", "a"],
        ["-o", "nowhere/out", "--", "echo", ":::", "a"],
        ["--mem", "lots", "--", "echo", ":::", "a"],
    ],
)
def test_a_map_that_makes_no_sense_is_a_usage_error(ada: RealPeer, tmp_path: Path, arguments: list[str]) -> None:
    ended = ada.croft("map", *arguments, cwd=tmp_path)

    assert ended.returncode == 2, ended.stderr
    two_lines(ended)


# --- croft run -------------------------------------------------------------------------------------------------------


def test_a_folder_goes_along_whole_and_names_can_be_changed(ada: RealPeer, work: Path) -> None:
    (work / "in" / "deep").mkdir()
    (work / "in" / "deep" / "tool").write_text("#!/bin/sh\ncat in/*.txt data > 'all of it'\n")
    (work / "in" / "deep" / "tool").chmod(0o755)

    ada.ok(
        *("run", "-i", "in", "-i", "in/one.txt:data", "-o", "all of it:sum", "--", "in/deep/tool"),
        cwd=work,
    )

    assert sorted((work / "sum").read_text().split()) == ["1", "1", "2"]


def test_variables_are_set_and_nothing_of_ours_gets_there(ada: RealPeer) -> None:
    ended = ada.croft("run", "--env", "LEVEL=3", "--", "env", environment={"A_SECRET": "here"})

    assert "LEVEL=3" in ended.stdout.splitlines()
    assert "A_SECRET" not in ended.stdout and "CROFT_HOME" not in ended.stdout


def test_a_missing_output_is_named_and_makes_a_success_a_failure(ada: RealPeer, tmp_path: Path) -> None:
    missing = ada.croft("run", "-o", "never", "--", "true", cwd=tmp_path)
    failed = ada.croft("run", "-o", "never", "--", "sh", "-c", "exit 4", cwd=tmp_path)

    assert missing.returncode == 1 and "never" in two_lines(missing)[0]
    assert failed.returncode == 4


@pytest.mark.parametrize("code", [0, 1, 5, 42, 255])
def test_the_exit_code_is_the_commands_own(ada: RealPeer, code: int) -> None:
    assert ada.croft("run", "--", "sh", "-c", f"exit {code}").returncode == code


def test_a_command_ended_by_a_signal_is_told_as_a_shell_does(ada: RealPeer) -> None:
    assert ada.croft("run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + 15


def test_a_command_that_is_not_there_is_told_as_a_shell_does(ada: RealPeer) -> None:
    ended = ada.croft("run", "--", "no-such-command")

    assert ended.returncode == 127 and "no-such-command" in two_lines(ended)[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--on", "nobody", "--", "true"],
        ["-i", "missing", "--", "true"],
        ["-o", "nowhere/out", "--", "true"],
        ["--mem", "lots", "--", "true"],
        ["--time", "soon", "--", "true"],
        ["--env", "LEVEL", "--", "true"],
    ],
)
def test_a_failure_of_croft_itself_is_125(ada: RealPeer, tmp_path: Path, arguments: list[str]) -> None:
    ended = ada.croft("run", *arguments, cwd=tmp_path)

    assert ended.returncode == 125, ended.stderr
    two_lines(ended)


# --- how it speaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pears"], "croft peers"),
        (["frobnicate"], "croft --help"),
        (["status", "--frob"], "croft status --help"),
        (["run"], "croft run --help"),
        (["up", "--set", "lend.cpus"], "croft up --help"),
        (["completion", "tcsh"], "croft completion --help"),
        (["invite", "--for", "ever"], ""),
    ],
)
def test_a_wrong_command_line_is_two_lines_and_exit_code_2(ada: RealPeer, arguments: list[str], said: str) -> None:
    ended = ada.croft(*arguments)

    assert ended.returncode == 2, ended
    assert said in two_lines(ended)[1]


def test_the_program_alone_lists_every_command(ada: RealPeer) -> None:
    ended = ada.croft()

    assert all(name in ended.stdout + ended.stderr for name in COMMANDS)
    assert all(ada.croft(name, "--help").returncode == 0 for name in ("up", "run", "map"))


def test_data_goes_to_stdout_and_talk_to_stderr(ada: RealPeer) -> None:
    ended = ada.croft("invite", "--line-only")

    assert ended.stdout.startswith("croft up --join croft:") and len(ended.stdout.splitlines()) == 1
    assert "works once" in ended.stderr


def on_a_terminal(peer: RealPeer, *arguments: str, **variables: str) -> str:
    """What `croft ARGUMENTS` prints where stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", **variables}
    kept = {
        name: value
        for name, value in peer.variables(environment).items()
        if name != "NO_COLOR" or "NO_COLOR" in variables
    }
    with subprocess.Popen(
        peer.command(*arguments), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=kept
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            if not part:
                break
            said += part
        process.wait(20)
    os.close(ours)
    return said.decode()


def test_colour_is_for_terminals_and_not_with_no_color(ada: RealPeer) -> None:
    assert ESCAPE in on_a_terminal(ada, "status")
    assert ESCAPE not in on_a_terminal(ada, "status", NO_COLOR="1")
    assert ESCAPE not in on_a_terminal(ada, "run", "--on", "nobody", "--", "true", NO_COLOR="1")
    assert ESCAPE not in ada.ok("status")


def test_completion_is_a_script_that_bash_takes_and_that_knows_the_commands(ada: RealPeer, tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_CROFT_COMPLETE" in ada.ok("completion", shell)
    (tmp_path / "croft").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m croft.cli.main "$@"\n')
    (tmp_path / "croft").chmod(0o755)
    (tmp_path / "completion").write_text(ada.ok("completion", "bash"))
    script = (
        f'PATH="{tmp_path}:$PATH"; . "{tmp_path}/completion"; '
        'COMP_WORDS=(croft stat); COMP_CWORD=1; _croft_completion croft stat croft; echo "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ada.variables(), timeout=20)

    assert ended.stdout.split() == ["status"], ended


def test_status_tells_who_what_and_what_next(pair: list[RealPeer]) -> None:
    with peers.homes() as base:
        alone = peers.make(base, "lone").start()
        first = alone.croft("status")
    second = pair[0].croft("status")

    assert first.stdout.startswith("lone") and "croft invite" in first.stderr
    assert "bob" in second.stdout and "direct" in second.stdout and "isolation grade" in second.stdout


def test_watching_with_json_gives_a_line_at_a_time(ada: RealPeer) -> None:
    running = ada.begin("status", "--watch", "--json")
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(2)]
    running.kill()
    running.communicate()

    assert [json.loads(line)["name"] for line in lines] == ["ada", "ada"]


def test_up_and_down_say_what_was_so_already(ada: RealPeer) -> None:
    with peers.homes() as base:
        peer = peers.make(base, "cyd")
        assert "not running" in peer.croft("down").stderr
        assert "Created your identity" in peer.croft("up").stderr
        assert "running already" in peer.croft("up").stderr
        assert "Peer stopped" in peer.croft("down").stderr
        until(lambda: peer.process is None, "it is gone")
        assert "Created" not in peer.croft("up").stderr


def test_settings_come_from_flag_environment_file_and_default_in_that_order() -> None:
    with peers.homes() as base:
        peer = RealPeer("ada", base / "ada", settings={"name": "from file", "lend.cpus": "1"})
        shown = peer.croft("config", "show", "--origin", environment={"CROFT_LEND_CPUS": "2"}).stdout.splitlines()

    rows = {line.split()[0]: line for line in shown[1:]}
    assert "from file" in rows["name"] and "config.toml" in rows["name"]
    assert "2" in rows["lend.cpus"] and "CROFT_LEND_CPUS" in rows["lend.cpus"]
    assert "default" in rows["port"]


def test_a_setting_edited_into_nonsense_is_not_kept() -> None:
    with peers.homes() as base:
        peer = RealPeer(
            "ada", base / "ada", settings={"name": "ada"}, environment={"EDITOR": "sh -c 'echo nonsense > $1' sh"}
        )
        ended = peer.croft("config", "edit")

        assert ended.returncode == 2
        two_lines(ended)
        assert peer.json("config", "show")["settings"][0]["value"] == "ada"


def test_a_command_reads_what_is_piped_in(pair: list[RealPeer]) -> None:
    lines = "".join(f"{number}\n" for number in range(20_000, 0, -1))

    ended = pair[0].croft("run", "--on", pair[1].name, "-I", "--", "sh", "-c", "sort -n; ls -A", input=lines)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "".join(f"{number}\n" for number in range(1, 20_001)), "and its folder holds no trace of it"


def test_without_being_asked_to_a_command_reads_nothing_and_takes_nothing_away(pair: list[RealPeer]) -> None:
    assert pair[0].croft("run", "--", "cat", input="kept for the next one\n").stdout == ""


def test_a_folder_that_a_command_makes_comes_back_whole_without_its_links(pair: list[RealPeer], tmp_path: Path) -> None:
    make = "mkdir -p out/deep/er; echo 1 > out/a; echo 2 > out/deep/er/b; ln -s /etc/passwd out/link; mkfifo out/pipe"

    pair[0].ok("run", "--on", pair[1].name, "-o", "out/:here", "--", "sh", "-c", make, cwd=tmp_path)

    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {"here/a", "here/deep/er/b"}
    assert (tmp_path / "here/deep/er/b").read_text() == "2\n"


def test_a_folder_that_a_command_did_not_make_is_named(pair: list[RealPeer], tmp_path: Path) -> None:
    ended = pair[0].croft("run", "-o", "out/", "--", "true", cwd=tmp_path)

    assert ended.returncode == 1
    assert "out/" in two_lines(ended)[0]
