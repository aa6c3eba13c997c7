"""Several calls in one task. The modules of what is called are loaded where the task's function is, so that all runners
share them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class CallBatches:
    """A function that makes each of a list of calls; the results in a list, or that list pickled.

    `modules` are imported when it is unpickled, those that are there.
    """

    def __init__(self, modules: Sequence[str], *, are_pickled: bool = False) -> None:
        self._modules = tuple(modules)
        self._are_pickled = are_pickled

    def __call__(self, calls: Sequence[Call]) -> Any:
        """Makes the calls, one after the other."""
        with _alone():
            results = [function(*args, **kwargs) for function, args, kwargs in calls]
        return cloudpickle.dumps(results) if self._are_pickled else results

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _load, (self._modules, self._are_pickled)


def _load(modules: Sequence[str], are_pickled: bool) -> CallBatches:
    for module in modules:
        # What is missing is told by the calls that need it.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    return CallBatches(modules, are_pickled=are_pickled)


def _alone() -> contextlib.AbstractContextManager[Any]:
    """What is parallel inside a call keeps to its own slot."""
    joblib = sys.modules.get("joblib")
    return contextlib.nullcontext() if joblib is None else joblib.parallel_config("sequential")
