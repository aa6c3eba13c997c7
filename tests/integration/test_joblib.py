"""joblib and scikit-learn over real peers, by `croft.joblib`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score

import croft
import croft.joblib
from support import peers
from support.peers import RealPeer, until


@pytest.fixture(scope="module")
def pair() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob"])


@pytest.fixture(scope="module")
def grid(pair: list[RealPeer]) -> Iterator[croft.Grid]:
    with pair[0].grid() as connected:
        yield connected


def where(number: int) -> tuple[int, str]:
    import socket

    return number, socket.gethostname()


def test_calls_run_on_the_peers_and_their_results_come_in_order(grid: croft.Grid) -> None:
    with joblib.parallel_config("croft", grid=grid, on=["bob"]):
        results = joblib.Parallel()(joblib.delayed(where)(number) for number in range(300))

    assert results == [(number, "bob") for number in range(300)]


def test_results_can_be_taken_one_by_one(grid: croft.Grid) -> None:
    with joblib.parallel_config("croft", grid=grid):
        results = joblib.Parallel(return_as="generator")(joblib.delayed(pow)(number, 2) for number in range(20))

        assert next(results) == 0 and list(results) == [number**2 for number in range(1, 20)]


def test_what_a_call_raises_is_raised_here_and_the_rest_is_cancelled(grid: croft.Grid, pair: list[RealPeer]) -> None:
    def fail_or_sleep(number: int) -> None:
        if number == 0:
            raise KeyError("nothing here")
        time.sleep(600)

    with joblib.parallel_config("croft", grid=grid), pytest.raises(KeyError, match="nothing here"):
        joblib.Parallel()(joblib.delayed(fail_or_sleep)(number) for number in range(4))

    until(lambda: all(peer.is_idle() for peer in pair), "nothing runs any more")


def test_all_slots_are_used_unless_a_number_is_asked_for(grid: croft.Grid) -> None:
    with joblib.parallel_config("croft", grid=grid, on=["bob"]):
        [slots] = [peer.slots for peer in grid.peers() if peer.name == "bob"]
        assert joblib.effective_n_jobs(-1) == slots
        assert joblib.effective_n_jobs(7) == 7
        with pytest.raises(ValueError, match="n_jobs"):
            joblib.effective_n_jobs(0)


def test_models_are_validated_on_the_peers(grid: croft.Grid) -> None:
    x, y = load_iris(return_X_y=True)
    model = RandomForestClassifier(10, random_state=0, n_jobs=1)

    with joblib.parallel_config("croft", grid=grid):
        scores = cross_val_score(model, x, y, cv=4)

    assert np.array_equal(scores, cross_val_score(model, x, y, cv=4, n_jobs=1))


def test_fitted_models_come_back_only_where_the_peers_are_trusted(grid: croft.Grid) -> None:
    x, y = load_iris(return_X_y=True)
    search: Any = GridSearchCV(RandomForestClassifier(random_state=0), {"n_estimators": [3, 5]}, cv=2)

    with joblib.parallel_config("croft", grid=grid), pytest.raises(croft.CodecError) as caught:
        search.fit(x, y)
    assert "trust_results" in caught.value.remedy

    with joblib.parallel_config("croft", grid=grid, trust_results=True, on=["bob"]):
        search.fit(x, y)
    assert search.score(x, y) > 0.9
