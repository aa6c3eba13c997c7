"""The blocking Python API: `connect()` gives a `Grid`, which spreads calls over the peers."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import operator
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from croft.client.backups import Backups
from croft.client.capabilities import Calls, LeftCall, Twin
from croft.client.capability import CONSENT_S, Known
from croft.client.environments_asked import environment_of
from croft.client.local_api import LocalApi
from croft.client.map_feed import Zipped, name_of
from croft.client.map_result import MapResult
from croft.client.messages import Messages
from croft.client.pipelines import Pipeline, PipelineRun
from croft.client.stored_files import StoredFiles
from croft.client.task import How, Wants, names_of, plain, wants_of
from croft.client.task_options import Options
from croft.client.task_session import TaskSession
from croft.control.home import Home
from croft.errors import Usage

if TYPE_CHECKING:
    from croft.client.durable import Job
    from croft.client.executor import GridExecutor
    from croft.compute.environment import Environment
    from croft.control import schema

T = TypeVar("T")
R = TypeVar("R")


_open_grids: weakref.WeakSet[Grid] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for grid in list(_open_grids):
        grid.close()


class Grid:
    """The computers of this peer's communities, as one.

    Every method may be called from any thread. Use as a context manager, or call `close`; the end of the program closes
    it too.
    """

    def __init__(self, home: Path | None = None, environment: Sequence[str] = ()) -> None:
        self._home = Home.find(home)
        self._environment = tuple(environment)
        self.api = LocalApi(self._home.control_socket)
        self.storage = StoredFiles(self._home, self.api)
        self.backup = Backups(self._home, self.api)
        self._calls = Calls(self._home.work_socket, self.api, self.run)
        self.messages = Messages(self.api)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="croft", daemon=True)
        self._thread.start()
        self._pid = os.getpid()
        self._sessions: set[TaskSession] = set()
        self._shared: dict[Wants, TaskSession] = {}
        self._lock = threading.Lock()
        self._submit_lock = threading.Lock()
        self._is_closed = False
        _open_grids.add(self)

    def __repr__(self) -> str:
        return f"<Grid at {self._home.state}{', closed' if self._is_closed else ''}>"

    # --- work --------------------------------------------------------------------------------------------------------

    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[R]:
        """Runs `function(*args, **kwargs)` on some peer; returns its future at once.

        Futures of other calls may stand among the arguments, at any depth: the call waits for them, and has their
        values. A large value stays at the peer that made it until its future's `result` is asked for; calls that have
        the future as an argument get it there, and run there if they can. If that peer is lost, it is made again.

        Raises:
            Unserialisable, TooLarge: the function or an argument cannot be sent.
            Unreachable: the daemon is not running.
        """
        return self._shared_session(wants_of(function)).submit(plain(function), args, kwargs, stays=True)

    @overload
    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        name: str = "",
        detach: Literal[False] = False,
        **how: Unpack[How],
    ) -> MapResult[R]: ...

    @overload
    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        name: str = "",
        detach: Literal[True],
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> Job[R]: ...

    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        name: str = "",
        detach: bool = False,
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> MapResult[R] | Job[R]:
        """Runs `function` on each item, spread over the peers; the results come in order, as an iterable.

        With `detach`, the job outlives this program: all of it is on this peer's disk when this returns. Whoever knows
        its id, or its `name`, reads its results later, with `Grid.job` or `croft job`, until it is forgotten.

        Args:
            iterables: as for the built-in `map`; may be endless, unless detached: they are read as results are taken.
            name: what to call the job.
            delegates: peers that hold a copy of a detached job and carry it on while this peer is away: names, or how
                many, which are then your own other devices and people you trust; None: as `jobs.delegates` says.
            how: see `croft.client.task.How`.

        Raises:
            Unserialisable, TooLarge: the function or an argument cannot be sent.
            Unreachable: the daemon is not running, or ends before all of a detached job is on its disk.
            Refused: not as many delegates as are wanted hold the job; then there is no job.
        """
        calls = Zipped(iterables)
        # No overload takes a `detach` of which only the value tells which result there is.
        return self.starmap(function, calls, name=name, detach=detach, delegates=delegates, **how)  # type: ignore[call-overload,no-any-return]

    @overload
    def starmap(
        self,
        function: Callable[..., R],
        calls: Iterable[Iterable[Any]],
        *,
        name: str = "",
        detach: Literal[False] = False,
        **how: Unpack[How],
    ) -> MapResult[R]: ...

    @overload
    def starmap(
        self,
        function: Callable[..., R],
        calls: Iterable[Iterable[Any]],
        *,
        name: str = "",
        detach: Literal[True],
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> Job[R]: ...

    def starmap(
        self,
        function: Callable[..., R],
        calls: Iterable[Iterable[Any]],
        *,
        name: str = "",
        detach: bool = False,
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> MapResult[R] | Job[R]:
        """Like `map`, for arguments that come in tuples already: `function(*call)` for each of `calls`."""
        wants = Wants.of(function, how)
        options = self._options(name or name_of(function), wants)
        each = (tuple(call) for call in calls)
        if detach:
            from croft.client.durable import check_detached, submit_durable

            check_detached(wants)
            chosen = (
                delegates if delegates is None or isinstance(delegates, int) else self.peer_ids(names_of(delegates))
            )
            job = submit_durable(self._home.work_socket, self.run, options, plain(function), each, chosen)
            return self.job(job)
        size = operator.length_hint(calls, -1)
        session = self._open_session(options)
        return MapResult(self, session, plain(function), each, None if size < 0 else size)

    def job(self, name: str) -> Job[Any]:
        """A detached job by its id, the beginning of its id, or its name. Raises NotFound."""
        from croft.client.durable import Job

        return Job(self.api, self._home.work_socket, self.run, self.api.job(name).job)

    def executor(self, **how: Unpack[How]) -> GridExecutor:
        """A `concurrent.futures.Executor` over the peers; a job of its own. Arguments as for `map`."""
        from croft.client.executor import GridExecutor

        return GridExecutor(self, self._open_session(self._options("executor", Wants.of(None, how))))

    @property
    def work_socket(self) -> Path:
        """Where its daemon takes work, for other clients such as `croft.dask`."""
        return self._home.work_socket

    def packages(self, sources: Sequence[str] = ()) -> Environment | None:
        """What these sources name, or else the grid's own, put together for peers. Raises Usage, NotFound, Failed."""
        return environment_of(self._home, sources or self._environment)

    def peer_ids(self, names: Sequence[str]) -> tuple[str, ...]:
        """The ids of peers that people name. Raises NotFound, Usage."""
        return tuple(self.api.find_peer(name).peer for name in names)

    # --- what other twins can do -------------------------------------------------------------------------------------

    def capability(
        self, name: str, *, of: str = "", timeout_s: float = 0.0, consent_s: float = CONSENT_S
    ) -> Callable[..., Any]:
        """A function that runs at whoever offers a capability of that name; `help` shows what it takes.

        The one whom the owner trusts most is asked first, then the one that is near and idle; if that fails before it
        has begun, another one that promises the same. What it yields comes as an iterator; leaving it ends the call.

        Args:
            of: a peer or a person by name, if nobody else will do.
            timeout_s: how long a call may take; 0: as its provider says.
            consent_s: how long a call waits for the provider's owner to allow it, where the owner wants to be asked.

        Raises:
            NotFound: nobody here offers it. Its calls raise BadArgument, Refused, CapabilityFailed, Unreachable.
        """
        return self._calls.capability(name, of, timeout_s, consent_s)

    def leave(self, name: str, *, of: str = "") -> Callable[..., LeftCall]:
        """A function that leaves a call for somebody who may be away: `grid.leave("ocr")(page).result()`.

        The call waits where the owner's delegates and others keep letters, sealed, and runs when the one who offers it
        is back, if the owner's rules let it. Raises NotFound, Usage for what streams; its calls BadArgument, TooLarge.
        """
        return self._calls.left(name, of)

    def left_call(self, id_: str) -> LeftCall:
        """A call that was left before, by how its id begins. Raises NotFound."""
        return LeftCall(self.api, self.api.left_call(id_).call)

    def function(self, known: Known) -> Callable[..., Any]:
        """A function that calls just this capability."""
        return self._calls.function(known)

    def twin(self, name: str) -> Twin:
        """A person's capabilities, or a peer's, as methods: `grid.twin("maria").transcribe(path)`."""
        return Twin(self._calls, self.api.find_provider(name), self.api.capabilities, name)

    def capabilities(self) -> list[schema.Capability]:
        """What others let the owner call, and what this peer offers."""
        return self.api.capabilities()

    def pipeline(self) -> Pipeline:
        """Stages for items: `grid.pipeline().then("transcribe").then("translate", to="en").run(paths).results()`."""
        return Pipeline(self._home.work_socket, self.api)

    def pipeline_run(self, name: str) -> PipelineRun:
        """A pipeline of this peer's owner, by its id or name. Raises NotFound."""
        return PipelineRun(self._home.work_socket, self.api, self.api.pipeline(name).pipeline)

    # --- questions ---------------------------------------------------------------------------------------------------

    def status(self) -> schema.Status:
        """Who this peer is, who is here, what is wrong."""
        return self.api.status()

    def peers(self) -> list[schema.Peer]:
        """Every known member, this peer first."""
        return self.api.peers()

    def jobs(self) -> list[schema.Job]:
        """Jobs submitted here, newest first."""
        return self.api.jobs()

    # --- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancels what is not done, and disconnects. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        _open_grids.discard(self)
        if os.getpid() == self._pid:
            for session in list(self._sessions):
                self.run(session.close())
            self.run(self._calls.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine of this package on the grid's own loop, and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def release(self, session: TaskSession) -> None:
        """Closes a session that is no longer needed."""
        with self._lock:
            if session not in self._sessions:
                return
            self._sessions.discard(session)
        if not self._is_closed:
            self.run(session.close())

    def _open_session(self, options: Options) -> TaskSession:
        if self._is_closed:
            raise Usage("this grid is closed", remedy="Connect again: `croft.connect()`.")
        session = TaskSession(options)
        self.run(session.open(self._home.work_socket))
        with self._lock:
            self._sessions.add(session)
        return session

    def _shared_session(self, wants: Wants) -> TaskSession:
        with self._submit_lock:
            session = self._shared.get(wants)
            if session is None or session.is_ended:
                session = self._shared[wants] = self._open_session(self._options("submit", wants))
            return session

    def _options(self, label: str, wants: Wants) -> Options:
        on, avoid = self.peer_ids(wants.on), self.peer_ids(wants.avoid)
        return Options.of(label, on, avoid, wants, self.packages(wants.environment))


def connect(home: str | Path | None = None, *, environment: str | Sequence[str] = ()) -> Grid:
    """Connects to this machine's peer. Raises Unreachable if it is not running.

    Args:
        home: the peer's home; by default as `croft` finds it (`CROFT_HOME`, else the user's data folder).
        environment: what every function imports from that names nothing else; see `croft.client.task.How`.
    """
    grid = Grid(Path(home) if home is not None else None, names_of(environment))
    try:
        grid.status()
    except BaseException:
        grid.close()
        raise
    return grid
