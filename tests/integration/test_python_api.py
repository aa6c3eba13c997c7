"""The Python API against real peers: the grid, the complete executor, and the asyncio twin."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import operator
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import croft
from croft.client.task import Wants
from support import peers
from support.peers import RealPeer, until

LONG_S = 600.0


@pytest.fixture(scope="module")
def pair() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob"])


@pytest.fixture(scope="module")
def grid(pair: list[RealPeer]) -> Iterator[croft.Grid]:
    with pair[0].grid() as connected:
        yield connected


def sent_bytes(peer: RealPeer) -> int:
    return sum(way.direct_sent_bytes for way in peer.api.net().ways)


def are_idle(pair: list[RealPeer]) -> bool:
    return all(peer.is_idle() for peer in pair)


# --- the grid --------------------------------------------------------------------------------------------------------


def test_a_call_with_all_kinds_of_arguments_comes_back(grid: croft.Grid) -> None:
    def gather(*args: object, **named: object) -> object:
        return {"args": list(args), **named}

    future = grid.submit(gather, 1, "two", [3.5, None], key=b"four")

    assert future.result() == {"args": [1, "two", [3.5, None]], "key": b"four"}


def test_a_map_of_several_inputs_stops_at_the_shortest(grid: croft.Grid) -> None:
    assert list(grid.map(operator.add, [1, 2, 3], itertools.count(10))) == [11, 13, 15]


# --- calls that depend on calls --------------------------------------------------------------------------------------


class Parcel:
    """Something that holds a future."""

    def __init__(self, content: object) -> None:
        self.content = content


def test_futures_among_the_arguments_stand_for_their_values_wherever_they_are(grid: croft.Grid) -> None:
    def unpack(parcel: Parcel, first: int, *, more: list[int]) -> object:
        return [parcel.content, first, more]

    one, two, three = (grid.submit(abs, -number) for number in (1, 2, 3))

    assert grid.submit(unpack, Parcel({"deep": [one]}), two, more=[three, 4]).result() == [{"deep": [1]}, 2, [3, 4]]


def test_a_long_chain_of_calls_ends_and_a_failure_at_its_head_reaches_its_end(grid: croft.Grid) -> None:
    ends = []
    for head in (grid.submit(abs, 0), grid.submit(operator.truediv, 1, 0)):
        for _ in range(200):
            head = grid.submit(lambda number: number + 1, head)
        ends.append(head)

    assert ends[0].result() == 200
    with pytest.raises(ZeroDivisionError):
        ends[1].result()


def test_a_call_that_waits_for_another_can_be_cancelled_and_learns_of_its_cancellation(grid: croft.Grid) -> None:
    slow = grid.submit(time.sleep, LONG_S)
    first, second = grid.submit(repr, slow), grid.submit(repr, slow)

    assert first.cancel() and first.cancelled() and not slow.done()
    slow.cancel()
    with pytest.raises(croft.Cancelled):
        second.result(timeout=30)


def test_what_an_async_call_needs_may_still_be_under_way(pair: list[RealPeer]) -> None:
    async def story() -> object:
        async with await croft.connect_async(pair[0].home) as grid:
            first = await grid.submit(abs, -20)
            return await (await grid.submit(operator.add, first, 22))

    assert asyncio.run(story()) == 42


def test_a_task_that_fails_now_and_then_is_run_again(grid: croft.Grid) -> None:
    def flaky(number: int) -> int:
        import random

        if random.random() < 0.3:
            raise OSError("out of luck")
        return number

    assert list(grid.map(flaky, range(60), retries=100)) == list(range(60))


def span(_: int) -> tuple[float, float]:
    started = time.time()
    time.sleep(0.1)
    return started, time.time()


def test_tasks_that_keep_several_processors_busy_do_not_share_them(grid: croft.Grid) -> None:
    spans = sorted(grid.map(span, range(6), on=["bob"], cpus=2))

    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_tasks_that_want_more_processors_than_anybody_lends_are_refused(grid: croft.Grid) -> None:
    with pytest.raises(croft.Refused, match="one task wants 64"):
        list(grid.map(span, [0], cpus=64))
    with pytest.raises(croft.Usage, match="0 processors"):
        grid.map(span, [0], cpus=0)


def test_of_ones_own_jobs_the_one_of_higher_priority_goes_first(grid: croft.Grid) -> None:
    def made(priority: int) -> list[concurrent.futures.Future[tuple[float, float]]]:
        function = croft.task(on=["bob"], priority=priority)(span)
        return [grid.submit(function, number) for number in range(30)]

    later, sooner = made(-1), made(1)

    mean_later, mean_sooner = (sum(end for _, end in (task.result() for task in job)) / 30 for job in (later, sooner))
    assert mean_sooner < mean_later, "though it was submitted later"
    with pytest.raises(croft.Usage, match="priority 101"):
        croft.task(priority=101)


# --- large values ----------------------------------------------------------------------------------------------------


def test_large_arrays_travel_both_ways_and_once_for_many_tasks(grid: croft.Grid, pair: list[RealPeer]) -> None:
    array = np.random.default_rng(7).random(3_000_000)

    @croft.task(on=["bob"])
    def scaled(values: Any, factor: int) -> Any:
        values *= factor
        return {"values": values, "factor": factor}

    before = sent_bytes(pair[0])
    futures = [grid.submit(scaled, array, factor) for factor in range(4)]

    for factor, future in enumerate(futures):
        assert np.array_equal(future.result()["values"], array * factor)
    until(lambda: sent_bytes(pair[0]) - before > array.nbytes, "the counts have been told")
    assert sent_bytes(pair[0]) - before < 1.5 * array.nbytes


def test_what_the_caller_changes_after_submitting_changes_no_task(grid: croft.Grid) -> None:
    array = np.zeros(1_000_000)

    futures = []
    for value in range(5):
        array[:] = value
        futures.append(grid.submit(lambda values: float(values.sum()), array))

    assert [future.result() for future in futures] == [value * 1e6 for value in range(5)]


def test_arguments_that_the_box_has_no_room_for_are_named(grid: croft.Grid) -> None:
    array = np.zeros(30_000_000)

    with pytest.raises(croft.TooLarge, match="room for") as caught:
        grid.submit(croft.task(on=["bob"])(len), array).result()
    assert "memory" in caught.value.remedy


# --- the grid, on ----------------------------------------------------------------------------------------------------


def test_an_endless_map_is_read_as_results_are_taken(grid: croft.Grid) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    mapped = grid.map(abs, numbers())
    assert [next(mapped) for _ in range(3)] == [0, 1, 2]
    mapped.cancel()

    assert len(taken) < 20_000


def test_results_may_be_taken_as_they_are_done(grid: croft.Grid) -> None:
    mapped = grid.map(lambda number: number * 2, range(30))

    assert sorted(mapped.as_completed()) == [(number, number * 2) for number in range(30)]


def test_a_map_goes_to_the_peers_named_and_not_to_those_avoided(grid: croft.Grid) -> None:
    on, avoid = grid.map(abs, range(10), on=["bob"]), grid.map(abs, range(10), avoid=["bob"])
    assert list(on) == list(avoid) == list(range(10))

    assert on.done_by == {"bob": 10} and avoid.done_by == {"ada": 10}
    with pytest.raises(croft.NotFound, match="nobody"):
        grid.map(abs, [1], on=["nobody"])


def test_what_tasks_print_comes_home_with_their_values(grid: croft.Grid, capfd: pytest.CaptureFixture[str]) -> None:
    @croft.task(logs=True)
    def talk(number: int) -> int:
        print("out", number)
        print("err", number, file=sys.stderr)
        subprocess.run(["sh", "-c", f"echo from a child {number}"], check=True)
        if number == 3:
            raise ValueError("no")
        return number * 2

    future = grid.submit(talk, 1)
    assert future.result() == 2
    log = getattr(future, "log", "")
    assert sorted(log.splitlines()) == ["err 1", "from a child 1", "out 1"]
    assert "#0] from a child 1" in capfd.readouterr().err
    failing = grid.submit(talk, 3)
    error = failing.exception()
    assert isinstance(error, ValueError) and "from a child 3" in "".join(traceback.format_exception(error))
    assert list(grid.map(len, ["a", "bb"], logs=True)) == [1, 2]
    long = grid.map(lambda _: print("x" * 100_000), [1], logs=True)
    assert list(long) == [None] and "bytes before" in capfd.readouterr().err
    for wrong in ({"verify": "vote:2"}, {"detach": True}):
        with pytest.raises(croft.Usage):
            grid.map(len, ["a"], logs=True, **wrong)  # type: ignore[call-overload]  # what the types cannot say


def test_an_exception_of_a_class_unknown_here_comes_as_text(grid: croft.Grid) -> None:
    def fail() -> None:
        class Odd(Exception):
            pass

        raise Odd("quite")

    with pytest.raises(croft.TaskFailed, match="Odd: quite") as caught:
        grid.submit(fail).result()
    assert "in fail" in caught.value.remote_traceback


def test_a_closed_grid_takes_nothing_and_fails_what_was_open(pair: list[RealPeer]) -> None:
    connected = pair[0].grid()
    future = connected.submit(time.sleep, LONG_S)
    connected.close()
    connected.close()

    with pytest.raises(croft.Cancelled):
        future.result(5)
    with pytest.raises(croft.Usage, match="closed"):
        connected.submit(abs, 1)
    until(lambda: are_idle(pair), "the peers have stopped its tasks")


def test_a_program_that_never_closes_its_grid_ends_without_a_word(pair: list[RealPeer]) -> None:
    program = (
        "import croft, time\n"
        "grid = croft.connect()\n"
        f"left = grid.submit(time.sleep, {LONG_S})\n"
        "print(grid.submit(abs, -3).result())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=pair[0].variables(),
        capture_output=True,
        text=True,
        timeout=peers.COMMAND_S_MAX,
        check=True,
    )

    assert (ended.stdout, ended.stderr) == ("3\n", "")
    until(lambda: are_idle(pair), "the peers have stopped its tasks")


# --- the executor ----------------------------------------------------------------------------------------------------


def test_it_is_an_executor(grid: croft.Grid) -> None:
    with grid.executor() as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        future = pool.submit(divmod, 7, 2)
        assert future.result(20) == (3, 1)
        assert future.done() and not future.running() and not future.cancelled() and future.exception() is None


def test_futures_are_found_as_completed_and_waited_for(grid: croft.Grid) -> None:
    with grid.executor() as pool:
        futures = {pool.submit(pow, 2, number): number for number in range(40)}
        done = {futures[future]: future.result() for future in concurrent.futures.as_completed(futures, 20)}
        finished, open_ = concurrent.futures.wait(futures, 20)

    assert done == {number: 2**number for number in range(40)}
    assert len(finished) == 40 and not open_


def test_callbacks_hear_of_every_end(grid: croft.Grid) -> None:
    heard: list[bool] = []
    with grid.executor() as pool:
        good, bad, never = pool.submit(abs, -1), pool.submit(abs, "x"), pool.submit(time.sleep, LONG_S)  # type: ignore[arg-type]
        for future in (good, bad, never):
            future.add_done_callback(lambda future: heard.append(future.cancelled()))
        assert isinstance(bad.exception(20), TypeError) and good.result(20) == 1
        assert never.cancel()

    assert sorted(heard) == [False, False, True]


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_keeps_order_whatever_the_chunks(grid: croft.Grid, chunksize: int) -> None:
    with grid.executor() as pool:
        assert list(pool.map(operator.sub, range(20), range(5, 25), chunksize=chunksize)) == [-5] * 20
        assert list(pool.map(abs, [], chunksize=chunksize)) == []


def test_map_raises_what_a_call_raised_after_the_results_before_it(grid: croft.Grid) -> None:
    with grid.executor() as pool:
        results = pool.map(operator.truediv, [8, 8, 8], [4, 2, 0])

        assert [next(results), next(results)] == [2.0, 4.0]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_map_begins_at_once_and_keeps_its_time_limit(grid: croft.Grid, pair: list[RealPeer]) -> None:
    with grid.executor() as pool:
        began = time.monotonic()
        results = pool.map(time.sleep, [0, LONG_S], timeout=1.0)
        with pytest.raises(TimeoutError):
            list(results)
        assert time.monotonic() - began < LONG_S / 10
    with grid.executor() as pool, pytest.raises(ValueError, match="chunksize"):
        pool.map(abs, [1], chunksize=0)
    until(lambda: are_idle(pair), "what came too late is stopped")


def test_shutdown_waits_for_what_runs_and_takes_no_more(grid: croft.Grid) -> None:
    pool = grid.executor()
    future = pool.submit(time.sleep, 0.3)
    pool.shutdown()

    assert future.done() and future.exception() is None
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)
    pool.shutdown()


def test_shutdown_need_not_wait(grid: croft.Grid) -> None:
    pool = grid.executor()
    future = pool.submit(lambda: time.sleep(0.3) or "done")
    pool.shutdown(wait=False)

    assert future.result(20) == "done"


def test_shutdown_cancels_on_demand_here_and_on_the_peers(grid: croft.Grid, pair: list[RealPeer]) -> None:
    pool = grid.executor()
    futures = [pool.submit(time.sleep, LONG_S) for _ in range(20)]
    until(lambda: any(peer.api.status().lending.slots_busy for peer in pair), "some of them run")
    pool.shutdown(cancel_futures=True)

    assert all(future.cancelled() for future in futures)
    until(lambda: are_idle(pair), "the peers have stopped them")


def test_an_executor_waits_at_the_end_of_its_with_statement(grid: croft.Grid) -> None:
    with grid.executor() as pool:
        futures = [pool.submit(time.sleep, 0.1) for _ in range(8)]

    assert all(future.done() for future in futures)


def test_cancelling_while_results_come_in_confuses_nobody(grid: croft.Grid, caplog: pytest.LogCaptureFixture) -> None:
    with grid.executor() as pool, caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        futures = [pool.submit(abs, -number) for number in range(3000)]
        futures[0].result(20)
        cancelled = [future for future in futures if future.cancel()]
        concurrent.futures.wait(futures, 20)

    assert all(future.cancelled() for future in cancelled)
    assert [f.result() for f in futures if not f.cancelled()] == [n for n, f in enumerate(futures) if not f.cancelled()]
    assert caplog.records == []


# --- asyncio ---------------------------------------------------------------------------------------------------------


def test_the_asyncio_twin_does_the_same(pair: list[RealPeer]) -> None:
    async def use() -> None:
        async with await croft.connect_async(pair[0].home) as grid:
            assert [value async for value in grid.map(operator.mul, range(5), range(5))] == [0, 1, 4, 9, 16]
            assert [v async for v in grid.map(abs, [-1], on="bob")] == [1]
            first, second = await grid.submit(abs, -1), await grid.submit(int, "x")
            assert await first == 1
            with pytest.raises(ValueError, match="invalid literal"):
                await second
            status, listed, jobs = await asyncio.gather(grid.status(), grid.peers(), grid.jobs())
            assert status.name == "ada" and {peer.name for peer in listed} == {"ada", "bob"} and jobs
            long = await grid.submit(time.sleep, LONG_S)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long

    asyncio.run(use())
    until(lambda: are_idle(pair), "the peers have stopped what was cancelled")


def test_leaving_an_asyncio_map_early_cancels_the_rest(pair: list[RealPeer]) -> None:
    async def use() -> None:
        async with await croft.connect_async(pair[0].home) as grid:
            mapped = grid.map(time.sleep, [0.0, *[LONG_S] * 8])
            async for _ in mapped:
                break
            await mapped.aclose()

    asyncio.run(use())
    until(lambda: are_idle(pair), "the peers have stopped the rest")


def test_the_asyncio_twin_detaches_reads_and_forgets_jobs(pair: list[RealPeer]) -> None:
    async def use() -> None:
        async with await croft.connect_async(pair[0].home) as grid:
            job = await grid.map(operator.mul, range(20), range(20), name="squares", detach=True)
            assert (await job.wait(60)).state == "ended"
            same = await grid.job("squares")
            assert same.id == job.id
            assert [value async for value in same.results()] == [number**2 for number in range(20)]
            assert dict([one async for one in same.as_completed()]) == {n: n**2 for n in range(20)}
            endless = await grid.starmap(time.sleep, [(LONG_S,)] * 3, detach=True)
            with pytest.raises(croft.TimedOut):
                await endless.wait(0.2)
            await endless.cancel()
            with pytest.raises(croft.Cancelled):
                _ = [value async for value in endless.results()]
            for one in (job, endless):
                await one.forget()
            with pytest.raises(croft.NotFound):
                await grid.job("squares")
            with pytest.raises(croft.Usage):
                await grid.map(abs, [1], logs=True, detach=True)

    asyncio.run(use())


def test_the_asyncio_twin_takes_results_as_they_are_done_and_merges_them(pair: list[RealPeer]) -> None:
    async def use() -> None:
        async with await croft.connect_async(pair[0].home) as grid:
            found = [one async for one in grid.map(abs, range(-30, 0)).as_completed()]
            assert sorted(found) == [(at, 30 - at) for at in range(30)]
            words = grid.map(str, range(100))
            assert await words.reduce(operator.add) == "".join(map(str, range(100)))
            assert sum(words.done_by.values()) > 100
            with pytest.raises(croft.Usage):
                await grid.map(str, []).reduce(operator.add)
            large = await grid.submit(np.ones, 400_000)
            assert await (await grid.submit(np.sum, large)) == 400_000
            assert (await large).sum() == 400_000

    asyncio.run(use())


def test_the_asyncio_twin_says_that_nothing_runs(tmp_path: object) -> None:
    with peers.homes() as base:
        home = RealPeer("ada", base / "ada").home
        with pytest.raises(croft.Unreachable, match="not running"):
            asyncio.run(croft.connect_async(home))  # type: ignore[arg-type]


# --- tuples, trees and functions with wants --------------------------------------------------------------------------


def test_a_starmap_spreads_each_tuple_over_the_parameters(grid: croft.Grid) -> None:
    assert list(grid.starmap(pow, [(2, 3), (3, 2), [10, 2]])) == [8, 9, 100]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 16, 17, 200])
def test_a_reduction_merges_neighbours_in_order(grid: croft.Grid, count: int) -> None:
    merged = grid.map(lambda number: f"{number},", range(count)).reduce(lambda left, right: left + right)

    assert merged == "".join(f"{number}," for number in range(count))


def test_the_peers_do_the_merging(grid: croft.Grid) -> None:
    here = os.getpid()

    def merge(left: set[int], right: set[int]) -> set[int]:
        return left | right | {os.getpid()}

    assert here not in grid.map(lambda _: {os.getpid()}, range(40)).reduce(merge)


def test_a_reduction_of_nothing_says_so(grid: croft.Grid) -> None:
    with pytest.raises(croft.Usage, match="nothing to merge"):
        grid.map(abs, []).reduce(max)
    with pytest.raises(croft.Usage, match="at least two"):
        grid.map(abs, [1]).reduce(max, fan_in=1)


def test_an_error_in_a_merge_is_raised_here(grid: croft.Grid) -> None:
    with pytest.raises(ZeroDivisionError):
        grid.map(abs, range(40)).reduce(lambda left, right: left // 0)


def test_a_decorated_function_runs_where_and_as_it_wants(grid: croft.Grid) -> None:
    @croft.task(on=["bob"], time=0.5)
    def linger(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    mapped = grid.map(linger, [0.0, 0.01])
    assert list(mapped) == [0.0, 0.01] and set(mapped.done_by) == {"bob"}
    assert grid.submit(linger, 0.02).result() == 0.02
    with pytest.raises(croft.TaskTimedOut):
        grid.submit(linger, 60).result()
    assert list(grid.map(linger, [0.6], time=20)) == [0.6], "what the call says counts more"
    assert linger(0.0) == 0.0 and linger.__name__ == "linger"


def test_what_is_not_deterministic_cannot_be_verified() -> None:
    with pytest.raises(croft.Usage, match="honest peers would differ"):
        croft.task(verify="vote:3", deterministic=False)
    with pytest.raises(croft.Usage, match="honest peers would differ"):
        Wants.of(croft.task(deterministic=False)(len), {"verify": "spot:5%"})


def test_a_deterministic_function_is_not_tried_again_when_it_raises(grid: croft.Grid) -> None:
    @croft.task(retries=5, deterministic=True)
    def fail(number: int) -> int:
        raise ValueError(f"no {number}")

    with pytest.raises(ValueError, match="no 3"):
        grid.submit(fail, 3).result()


def test_a_decorator_refuses_what_is_no_size() -> None:
    with pytest.raises(croft.Usage):
        croft.task(memory="much")


def test_the_asyncio_twin_has_starmap_and_wants_too(pair: list[RealPeer]) -> None:
    @croft.task(avoid=["ada"])
    def add(left: int, right: int) -> int:
        return left + right

    async def body() -> None:
        async with await croft.connect_async(pair[0].home) as twin:
            assert [value async for value in twin.starmap(add, [(1, 2), (3, 4)])] == [3, 7]
            assert await (await twin.submit(add, 5, 6)) == 11

    asyncio.run(body())
