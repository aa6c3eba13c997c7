"""Pipelines: items through the capabilities of several twins, whose peers hand on to each other what they made."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from croft.client.capability import Known, choose, with_files
from croft.client.local_api import LocalApi
from croft.client.work_connection import WorkConnection
from croft.control import schema
from croft.control.work_messages import (
    OpenPipeline,
    OpenPipelineResults,
    PipelineFailure,
    PipelineInput,
    PipelineOver,
    PipelineResult,
    PipelineTaken,
)
from croft.errors import BadArgument, CapabilityFailed, CodecError, TimedOut, Unreachable, Usage
from croft.twins.pipeline_store import PipelineSpec, StageSpec
from croft.twins.pipelines import whole_parts
from croft.wire.values import decode_value

LOOK_EVERY_S: Final = 0.2


class Stage:
    """One stage, bound to what its provider published."""

    def __init__(self, known: Known, item: str, arguments: dict[str, Any], timeout_s: float) -> None:
        if known.signature.streams or known.signature.stream_in:
            raise Usage(f"`{known.name}` streams, and a stage takes one value and gives one", remedy="Call it instead.")
        free = [name for name in known.fields if name not in arguments]
        if not item and not free:
            raise BadArgument(f"`{known.name}` has no parameter left for the items")
        self.known = known
        self.parameter = item or free[0]
        if self.parameter not in known.fields:
            raise known.unknown(self.parameter)
        required = known.signature.parameters.get("required", [])
        for name in required:
            if name != self.parameter and name not in arguments:
                raise BadArgument(f"`{known.name}` needs `{name}` too", field=name)
        encoded = known.encoded_some(arguments)
        digest = bytes.fromhex(known.offered.digest)
        self.spec = StageSpec(known.name, known.of, encoded, self.parameter, digest, timeout_s)

    def encoded_item(self, item: Any) -> bytes:
        """An item, checked, as it travels. Raises BadArgument, TooLarge."""
        return self.known.encoded_field(self.parameter, item)


class Pipeline:
    """Stages in order; `then` gives one with a stage more, `run` sends items through."""

    def __init__(self, work_socket: Path, api: LocalApi, stages: tuple[Stage, ...] = ()) -> None:
        self._work_socket = work_socket
        self._api = api
        self.stages = stages

    def then(
        self, capability: str, *, of: str = "", item: str = "", timeout_s: float = 0.0, **arguments: Any
    ) -> Pipeline:
        """A pipeline that goes on with a capability.

        Args:
            of: a peer or a person by name, if nobody else will do.
            item: the parameter that takes what comes; by default the first one without an argument.
            timeout_s: how long one call may take; 0: as its provider says.
            arguments: the same for all items.

        Raises:
            NotFound: nobody here offers it. BadArgument: it does not take these; the field is named. Usage.
        """
        stage = Stage(self.known(capability, of), item, arguments, timeout_s)
        return Pipeline(self._work_socket, self._api, (*self.stages, stage))

    def known(self, capability: str, of: str = "") -> Known:
        """What a stage would call. Raises NotFound."""
        provider = self._api.find_provider(of) if of else ""
        return Known(choose(self._api.capabilities(), capability, provider), provider)

    def run(self, items: Iterable[Any], *, name: str = "", retries: int = 0) -> PipelineRun:
        """Sends items through; returns once all of them are on this peer's disk, while the first are under way.

        The pipeline goes on without this program. `retries`: how often a stage may fail on an item by itself; whoever
        dies is replaced in any case, so that a stage may run twice on an item.

        Raises BadArgument for an item that the first stage does not take, Usage, NotFound, Busy, Unreachable.
        """
        if not self.stages:
            raise Usage("a pipeline without stages", remedy="Add one: `.then('transcribe')`.")
        ended = Unreachable("the daemon ended before all items were on its disk", remedy="Start it with `croft up`.")
        connection = WorkConnection(self._work_socket, ended)
        try:
            connection.send(OpenPipeline(PipelineSpec(name, [stage.spec for stage in self.stages], retries)))
            opened = connection.receive()
            assert isinstance(opened, PipelineTaken)
            for item in items:
                parts = whole_parts(self.stages[0].encoded_item(item))
                for part in parts[:-1]:
                    connection.send(PipelineInput(part, is_last=False))
                connection.send(PipelineInput(parts[-1]))
            connection.send(PipelineInput(is_end=True))
            connection.receive()
        finally:
            connection.close()
        return PipelineRun(self._work_socket, self._api, opened.pipeline)


class PipelineRun:
    """A pipeline that runs, or ran, on this peer."""

    def __init__(self, work_socket: Path, api: LocalApi, id_: str) -> None:
        self._work_socket = work_socket
        self._api = api
        self.id = id_

    def status(self) -> schema.Pipeline:
        """How its stages stand. Raises NotFound."""
        return self._api.pipeline(self.id)

    def wait(self, timeout_s: float | None = None) -> schema.Pipeline:
        """Waits until it is over. Raises TimedOut."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (status := self.status()).ended_at is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimedOut(f"pipeline {self.id} is not over yet", remedy=f"See `croft pipeline show {self.id}`.")
            time.sleep(LOOK_EVERY_S)
        return status

    def outcomes(self, *, in_order: bool = False) -> Generator[tuple[int, Any]]:
        """Each item's number with its result, or with the CapabilityFailed that ended it, as they come."""
        ended = Unreachable("the daemon ended", remedy="Start it with `croft up`; the pipeline goes on then.")
        connection = WorkConnection(self._work_socket, ended)
        parts: list[bytes] = []
        try:
            connection.send(OpenPipelineResults(self.id, in_order))
            while not isinstance(message := connection.receive(), PipelineOver):
                match message:
                    case PipelineResult(item, data, is_last):
                        parts.append(data)
                        if is_last:
                            yield item, _loaded(item, b"".join(parts))
                            parts = []
                    case PipelineFailure(item, stage, why):
                        parts = []
                        where = f"`{stage}` failed" if stage else "its result cannot be read"
                        yield item, CapabilityFailed(f"item {item}: {where}: {why}")
        finally:
            connection.close()

    def results(self) -> Iterator[Any]:
        """The results in the order of the items; raises CapabilityFailed at the first that did not get through."""
        for _, outcome in self.outcomes(in_order=True):
            if isinstance(outcome, CapabilityFailed):
                raise outcome
            yield outcome

    def cancel(self) -> schema.Pipeline:
        """Ends it; what is through stays."""
        return self._api.cancel_pipeline(self.id)

    def forget(self) -> schema.Pipeline:
        """Ends it if it runs, and drops its results."""
        return self._api.forget_pipeline(self.id)


class AsyncPipeline:
    """The asyncio twin of `Pipeline`; its stages are looked up when it is run."""

    def __init__(self, pipeline: Pipeline, asked: tuple[Callable[[Pipeline], Pipeline], ...] = ()) -> None:
        self._pipeline = pipeline
        self._asked = asked

    def then(
        self, capability: str, *, of: str = "", item: str = "", timeout_s: float = 0.0, **arguments: Any
    ) -> AsyncPipeline:
        """See `Pipeline.then`; what that raises, `run` raises."""

        def add(pipeline: Pipeline) -> Pipeline:
            return pipeline.then(capability, of=of, item=item, timeout_s=timeout_s, **arguments)

        return AsyncPipeline(self._pipeline, (*self._asked, add))

    async def run(self, items: Iterable[Any], *, name: str = "", retries: int = 0) -> AsyncPipelineRun:
        """See `Pipeline.run`."""

        def run() -> PipelineRun:
            pipeline = self._pipeline
            for add in self._asked:
                pipeline = add(pipeline)
            return pipeline.run(items, name=name, retries=retries)

        return AsyncPipelineRun(await asyncio.to_thread(run))


class AsyncPipelineRun:
    """The asyncio twin of `PipelineRun`."""

    def __init__(self, run: PipelineRun) -> None:
        self._run = run
        self.id = run.id

    async def status(self) -> schema.Pipeline:
        """See `PipelineRun.status`."""
        return await asyncio.to_thread(self._run.status)

    async def wait(self, timeout_s: float | None = None) -> schema.Pipeline:
        """See `PipelineRun.wait`."""
        return await asyncio.to_thread(self._run.wait, timeout_s)

    async def outcomes(self, *, in_order: bool = False) -> AsyncIterator[tuple[int, Any]]:
        """See `PipelineRun.outcomes`."""
        outcomes = self._run.outcomes(in_order=in_order)
        try:
            while (outcome := await asyncio.to_thread(next, outcomes, None)) is not None:
                yield outcome
        finally:
            with contextlib.suppress(
                ValueError
            ):  # where a thread still waits for the next one, it ends with the daemon
                outcomes.close()

    async def results(self) -> AsyncIterator[Any]:
        """See `PipelineRun.results`."""
        async for _, outcome in self.outcomes(in_order=True):
            if isinstance(outcome, CapabilityFailed):
                raise outcome
            yield outcome

    async def cancel(self) -> schema.Pipeline:
        """See `PipelineRun.cancel`."""
        return await asyncio.to_thread(self._run.cancel)

    async def forget(self) -> schema.Pipeline:
        """See `PipelineRun.forget`."""
        return await asyncio.to_thread(self._run.forget)


def _loaded(item: int, data: bytes) -> Any:
    try:
        return with_files(decode_value(bytearray(data)))
    except CodecError as error:
        return CapabilityFailed(f"item {item}: its result cannot be read: {error.message}")
