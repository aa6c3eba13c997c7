"""The peers as a backend of joblib, and so of scikit-learn: import this module, then choose the backend "croft".

    import croft.joblib
    with joblib.parallel_config("croft"):
        cross_val_score(model, x, y)

Options of `parallel_config`: `grid` (default: `croft.connect()`), those of `croft.client.task.How`, `trust_results`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import joblib
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase

from croft.client.call_batches import Call, CallBatches
from croft.client.grid import connect
from croft.errors import CodecError

if TYPE_CHECKING:
    from croft.client.executor import GridExecutor
    from croft.client.grid import Grid

TRUST_REMEDY = (
    "Objects such as fitted models come back only from peers that you trust with your account: "
    'parallel_config("croft", trust_results=True, on=[…]).'
)


class CroftBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is not typed
    """Runs joblib's batches as tasks on the peers.

    Results come back in the safe codec: numbers, text, containers, arrays, dataclasses. With `trust_results` they are
    pickles, so that anything comes back, fitted models too; whoever computes one can then run code in this program:
    use it with `on` and one's own peers.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        grid: Grid | None = None,
        *,
        trust_results: bool = False,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **how: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._given = grid
        self._grid: Grid | None = None
        self._how = how
        self._are_pickled = trust_results
        self._batches: dict[tuple[str, ...], CallBatches] = {}
        self._executor: GridExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at once: all slots that reachable peers lend, or, above 0, `n_jobs`.

        Raises Unreachable if the daemon is not running.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning: -1 is all that the peers lend")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        named = set(self._how.get("on", ()))
        peers = [peer for peer in self._connected().peers() if not named or {peer.name, peer.peer} & named]
        return max(1, sum(peer.slots for peer in peers if peer.link != "offline"))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Opens a job for one use of `joblib.Parallel`."""
        self.parallel = parallel
        self._executor = self._connected().executor(**self._how)
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[Future[Any]], None] | None = None) -> Future[Any]:
        """Runs a batch of calls on some peer. Raises Unserialisable or TooLarge at once."""
        assert self._executor is not None, "configured before it is used"
        calls: list[Call] = [(function, tuple(args), dict(kwargs)) for function, args, kwargs in func.items]
        future = self._executor.submit(self._batch_of(calls), calls)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What the calls of a batch returned. Raises what one raised."""
        try:
            results = out.result()
        except CodecError as error:
            raise CodecError(error.message, remedy=TRUST_REMEDY) from None
        return pickle.loads(results) if self._are_pickled else results

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancels what is not done, on the peers too."""
        self.terminate()
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)

    def terminate(self) -> None:
        """Ends the job."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
        if self._given is None and self._grid is not None:
            self._grid.close()
            self._grid = None
        self.reset_batch_stats()

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """What a task uses that is parallel itself: nothing but its own slot."""
        return joblib.parallel.SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def _batch_of(self, calls: Sequence[Call]) -> CallBatches:
        named = {str(getattr(function, "__module__", "")) for function, _, _ in calls}
        modules = tuple(sorted(named - {"", "__main__"}))
        if modules not in self._batches:
            self._batches[modules] = CallBatches(modules, are_pickled=self._are_pickled)
        return self._batches[modules]

    def _connected(self) -> Grid:
        if self._grid is None:
            self._grid = self._given or connect()
        return self._grid


joblib.register_parallel_backend("croft", CroftBackend)
