"""The rows of jobs that outlive what submitted them, shown by real daemons that are killed.

A campaign (`CROFT_CAMPAIGN=long`) kills more often.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import croft
from support import peers
from support.peers import RealPeer, two_lines, until

IS_CAMPAIGN = os.environ.get("CROFT_CAMPAIGN") == "long"
KILLS, KILL_TASKS = (50, 10_000) if IS_CAMPAIGN else (2, 2_000)
WAIT_S_MAX = 120.0


@pytest.fixture(scope="module")
def trio() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd"])


def triple(number: int) -> int:
    return 3 * number


def nap(number: int) -> int:
    time.sleep(0.005)
    return 3 * number


SUBMIT = """
import sys, time, croft
def nap(number):
    import time
    time.sleep(0.005)
    return 3 * number
with croft.connect() as grid:
    print(grid.map(nap, range(400), name="orphan", detach=True).id, flush=True)
    time.sleep(600)
"""


def test_a_job_goes_on_when_its_program_is_killed_and_is_read_by_another(trio: list[RealPeer]) -> None:
    """D4: the Python process dies by SIGKILL right after the job was submitted; the command line reads all results."""
    program = subprocess.Popen(
        [sys.executable, "-c", SUBMIT], stdout=subprocess.PIPE, text=True, env=trio[0].variables()
    )
    assert program.stdout is not None
    job = program.stdout.readline().strip()
    program.kill()
    program.wait()

    watched = trio[0].ok("job", job, "--watch", "--json")
    shown = trio[0].json("job", "orphan")["job"]
    results = trio[0].ok("job", job[:6], "--results", "--json")

    assert json.loads(watched.splitlines()[-1])["job"]["state"] == "ended"
    assert (shown["job"], shown["tasks"], shown["done"], shown["failed"]) == (job, 400, 400, 0)
    assert sum(shown["done_by"].values()) == 400
    assert [json.loads(line)["result"] for line in results.splitlines()] == [3 * number for number in range(400)]


def test_a_submitting_daemon_that_is_killed_again_and_again_loses_and_doubles_nothing(trio: list[RealPeer]) -> None:
    """D4: SIGKILL to the submitter's daemon, again and again: the journal is intact, each task is recorded once."""
    ada = trio[0]
    with ada.grid() as grid:
        job = grid.map(nap, range(KILL_TASKS), name="killed", detach=True).id
    done = 0
    for kill in range(KILLS):
        wanted = KILL_TASKS * (kill + 1) // (KILLS + 2)
        until(lambda wanted=wanted: ada.api.job(job).done >= wanted, f"{wanted} are done", WAIT_S_MAX)  # type: ignore[misc]
        assert ada.api.job(job).done >= done, "what was on disk is still there"
        done = ada.api.job(job).done
        ada.kill()
        ada.start()

    with ada.grid() as grid:
        status = grid.job(job).wait(WAIT_S_MAX)
        results = list(grid.job(job).results())
        completed = sorted(grid.job(job).as_completed())

    assert (status.state, status.tasks, status.done, status.failed) == ("ended", KILL_TASKS, KILL_TASKS, 0)
    assert results == [3 * number for number in range(KILL_TASKS)]
    assert completed == list(enumerate(results))


def test_a_detached_job_tells_of_failed_tasks_and_can_be_forgotten(trio: list[RealPeer]) -> None:
    """Results in order with an exception in the place of one; exit code 1; gone once forgotten."""

    def picky(number: int) -> int:
        if number == 2:
            raise KeyError(number)
        return number

    with trio[0].grid() as grid:
        job = grid.map(picky, range(4), name="picky", detach=True)
        results = list(job.results(return_exceptions=True))
        with pytest.raises(KeyError):
            list(job.results())
        printed = trio[0].croft("job", "picky", "--results")
        job.forget()
        with pytest.raises(croft.NotFound):
            job.status()

    assert results[:2] + results[3:] == [0, 1, 3] and repr(results[2]) == "KeyError(2)"
    assert printed.returncode == 1 and printed.stdout.split() == ["0", "1", "3"] and "task 2" in printed.stderr
    two_lines(trio[0].croft("job", "picky"))


def test_a_cancelled_job_keeps_what_is_done(trio: list[RealPeer]) -> None:
    """`croft job ID --cancel` ends it on the peers; the results so far can be read, the rest is missing."""
    with trio[0].grid() as grid:
        job = grid.map(lambda n: __import__("time").sleep(0.05) or n, range(2_000), detach=True)
        until(lambda: job.status().done > 10, "some are done")
        trio[0].ok("job", job.id, "--cancel")
        with pytest.raises(croft.Cancelled):
            list(job.results())
        assert job.wait(10).state == "cancelled"
        assert len(list(job.as_completed())) == job.status().done
    until(lambda: all(peer.is_idle() for peer in trio), "nobody works on it any more")


def test_what_cannot_be_sent_leaves_no_job_behind(trio: list[RealPeer]) -> None:
    """An argument in the middle that cannot be pickled: an error at once, and no half of a job."""
    with trio[0].grid() as grid:
        items: list[object] = [*range(5_000), Path, lambda: (yield)]
        items.append(step for step in range(3))
        with pytest.raises(croft.Unserialisable):
            grid.map(id, items, name="half", detach=True)
        until(lambda: not [job for job in grid.jobs() if job.label == "half"], "it is dropped")


@pytest.fixture(scope="module")
def six() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["sue", "one", "two", "three", "four", "five"])


def test_four_submitters_share_six_peers_of_which_one_is_killed(six: list[RealPeer]) -> None:
    """D5: four submitters of 50 tasks each on six peers, one is killed midway: all finish, nobody does over 40 %."""

    def submit(peer: RealPeer) -> tuple[list[int], dict[str, int]]:
        with peer.grid() as grid:
            mapped = grid.map(long_nap, range(50))
            return list(mapped), mapped.done_by

    with ThreadPoolExecutor(4) as pool:
        submitted = [pool.submit(submit, peer) for peer in six[:4]]
        until(lambda: six[5].api.status().lending.slots_busy, "the victim is at work")
        six[5].kill()
        ended = [one.result(WAIT_S_MAX) for one in submitted]

    six[5].start()
    peers.await_links(six)
    done_by: Counter[str] = Counter()
    for results, by in ended:
        assert results == [3 * number for number in range(50)]
        done_by.update(by)
    assert sum(done_by.values()) == 200 and max(done_by.values()) <= 0.4 * 200, done_by


def test_a_job_survives_its_submitter_and_two_of_five_providers(six: list[RealPeer]) -> None:
    """D4: SIGKILL to the submitter and to 2 of 5 providers, a delegate among them: 200 of 200 right, each once.

    They are read by id on another device of the submitter, while the submitter is off; and then at the submitter.
    """
    sue, providers = six[0], six[1:]
    phone = peers.make(sue.home.parent, "phone", settings={"lend.cpus": "0"})
    phone.start("--join", sue.json("device", "add")["line"])
    peers.await_links([sue, phone])
    with sue.grid() as grid:
        job = grid.map(long_nap, range(200), name="survivor", detach=True, delegates=["one", "two"])
        until(lambda: job.status().done >= 10, "it is under way")
    for victim in (sue, providers[0], providers[4]):
        victim.kill()

    until(lambda: phone.api.job(job.id).state == "ended", "a delegate finishes it", WAIT_S_MAX)
    shown = phone.json("job", "survivor")["job"]
    results = phone.ok("job", job.id, "--results", "--json")
    assert (shown["tasks"], shown["done"], shown["failed"], shown["carrier"]) == (200, 200, 0, "two")
    assert [json.loads(line)["result"] for line in results.splitlines()] == [3 * number for number in range(200)]
    two_lines(providers[2].croft("job", job.id, "--results"))

    sue.start()
    with sue.grid() as grid:
        status = grid.job("survivor").wait(WAIT_S_MAX)
        completed = sorted(grid.job("survivor").as_completed())
    assert (status.state, status.done) == ("ended", 200)
    assert completed == [(number, 3 * number) for number in range(200)]
    until(lambda: sue.api.job(job.id).delegates == ["one"], "the delegate that lives has dropped its copy")


def long_nap(number: int) -> int:
    time.sleep(0.15)
    return 3 * number


def test_large_arguments_and_results_of_a_job_on_disk_come_whole(trio: list[RealPeer]) -> None:
    """Arrays of megabytes both ways: the journal keeps them in full."""
    with trio[0].grid() as grid:
        job = grid.map(lambda array: array * 2, [np.full(400_000, float(n)) for n in range(3)], detach=True)

        assert [(float(array[0]), array.size) for array in job.results()] == [(2.0 * n, 400_000) for n in range(3)]
        job.forget()


# --- D3: larger than any one peer ------------------------------------------------------------------------------------

INPUT_BYTES = (1_200 if IS_CAMPAIGN else 400) << 20
PIECE_BYTES = 4 << 20
LIMIT = "300M"
LIMIT_BYTES = 300 << 20

COUNT_WORDS = """
import collections, json, re, sys, croft

LINE = b"one two two three three three " + b"-" * 289 + b" "
TEXT, PIECES, LIMIT, PIECE = LINE, int(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def pieces():
    for _ in range(PIECES):
        yield (TEXT * (PIECE // len(TEXT) + 1))[:PIECE // len(TEXT) * len(TEXT)]

def count(text):
    return dict(collections.Counter(text.decode().split()))

def merge(one, other):
    return {word: one.get(word, 0) + other.get(word, 0) for word in {*one, *other}}

def alone(pieces, piece):
    return count(b"".join(TEXT * (piece // len(TEXT)) for _ in range(pieces)))

with croft.connect() as grid:
    counts = grid.map(count, pieces(), memory=LIMIT, avoid=["ada"]).reduce(merge)
    try:
        died = str(next(grid.map(alone, [PIECES], [PIECE], memory=LIMIT, on=["bob"])))
    except croft.TaskDied as error:
        died = error.message
# Not `getrusage`: a process that was just started has the peak of its parent there.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"counts": counts, "died": died, "peak": peak}))
"""


def test_words_are_counted_of_a_text_that_no_single_peer_could_hold(trio: list[RealPeer]) -> None:
    """D3: every box is held to 300 MB; a larger text is counted piece by piece; alone on one peer the task dies.

    The program and its daemon take less than that too: the text is made as it is needed.
    """
    pieces = INPUT_BYTES // PIECE_BYTES
    program = subprocess.run(
        [sys.executable, "-c", COUNT_WORDS, str(pieces), LIMIT, str(PIECE_BYTES)],
        capture_output=True,
        text=True,
        env=trio[0].variables(),
        timeout=WAIT_S_MAX,
    )
    assert program.returncode == 0, program.stderr
    said = json.loads(program.stdout)
    lines = PIECE_BYTES // 320 * pieces

    assert said["counts"] == {"one": lines, "two": 2 * lines, "three": 3 * lines, "-" * 289: lines}
    assert "memory" in said["died"]
    assert said["peak"] < LIMIT_BYTES
    peak_kib = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{trio[0].process}/status").read_text())
    assert peak_kib is not None and int(peak_kib[1]) * 1024 < LIMIT_BYTES


def test_a_detached_command_goes_on_and_its_files_are_fetched(trio: list[RealPeer], tmp_path: Path) -> None:
    """D4 for commands: `croft run --detach` comes back at once; what it printed and made is fetched later."""
    ada, _, _ = trio
    (tmp_path / "words.txt").write_text("ink\nwell\nink\n")
    script = "sleep 1; sort -u words.txt > sorted.txt; cat >> sorted.txt; echo done; echo noted >&2; exit 3"
    job = ada.ok(
        *("run", "--detach", "--name", "sorting", "-I", "-i", str(tmp_path / "words.txt"), "-o", "sorted.txt"),
        *("--on", "bob", "--", "sh", "-c", script),
        input="more\n",
    ).strip()

    read = ada.croft("job", job, "--results", "--watch")
    assert (read.returncode, read.stdout) == (1, "done\n")
    assert "noted" in read.stderr and "on bob exited with 3" in read.stderr
    assert ada.croft("job", "sorting", "--fetch", str(tmp_path / "made")).returncode == 1
    made = tmp_path / "made" / "1"
    assert (made / "files" / "sorted.txt").read_text() == "ink\nwell\nmore\n"
    assert (made / "stdout").read_text() == "done\n" and (made / "exit").read_text() == "3\n"


def test_results_that_are_there_are_read_while_the_first_task_is_under_way(trio: list[RealPeer]) -> None:
    """D4: without --watch nothing is waited for, whatever is done first."""
    ada, _, _ = trio
    job = ada.ok("map", "--detach", "--", "sh", "-c", "[ {} = 1 ] && sleep 600; echo {}", ":::", "1", "2", "3").strip()
    assert ada.croft("job", job, "--results").returncode == 0
    until(lambda: ada.api.job(job).done == 2, "two are done")

    read = ada.croft("job", job, "--results")
    assert (read.returncode, read.stdout) == (0, "2\n3\n")
    assert "2 of 3 tasks are done" in read.stderr
    ada.ok("job", job, "--cancel")


def test_a_detached_map_runs_a_command_for_each_item(trio: list[RealPeer], tmp_path: Path) -> None:
    """D4 for commands: `croft map --detach`, each with its file, fetched in the order of the items."""
    ada, _, _ = trio
    texts = [tmp_path / f"{name}.txt" for name in ("a", "b", "c")]
    for text in texts:
        text.write_text(text.stem * 3)
    job = ada.ok("map", "--detach", "-o", "{.}.up", "--", "tr a-z A-Z < {} > {.}.up", ":::", *map(str, texts)).strip()

    ada.ok("job", job, "--fetch", str(tmp_path / "made"), "--watch")
    made = [(tmp_path / "made" / str(n) / "files" / f"{p.stem}.up").read_text() for n, p in enumerate(texts, 1)]
    assert made == ["AAA", "BBB", "CCC"]
    lines = [json.loads(line) for line in ada.ok("job", job, "--results", "--json").splitlines()]
    assert [(line["result"]["item"], line["result"]["exit"]) for line in lines] == [(str(text), 0) for text in texts]
    assert "place for" in two_lines(ada.croft("run", "--detach", "-o", "x:y", "--", "true"))[0]
    assert "--detach" in two_lines(ada.croft("run", "--name", "x", "--", "true"))[1]
