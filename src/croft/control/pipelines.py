"""The work socket's side of pipelines: taking items in, and giving out what became of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from croft.control.work_messages import (
    OpenPipeline,
    OpenPipelineResults,
    PipelineFailure,
    PipelineInput,
    PipelineOver,
    PipelineResult,
    PipelineTaken,
)
from croft.errors import CroftError, PeerMisbehaved
from croft.twins.call_messages import VALUE_PART_BYTES_MAX
from croft.twins.pipeline_store import PipelineSpec
from croft.twins.pipelines import ITEM_BYTES_MAX
from croft.wire.codec import decode
from croft.wire.message_stream import MessageStream

STEP = "local work"

Outcome = PipelineFailure | tuple[int, AsyncIterator[bytes]]
"""Why an item did not get through, or its number and the bytes of its result."""


class PipelineDesk(Protocol):
    """What programs ask of the peer's pipelines."""

    async def open(self, spec: PipelineSpec) -> str:
        """A new pipeline. Raises Usage, NotFound, Busy."""
        ...

    async def add(self, id_: str, parts: Sequence[bytes]) -> None:
        """One more item. Raises CroftError."""
        ...

    async def close_input(self, id_: str) -> int:
        """No more items come; how many there are. Raises CroftError."""
        ...

    def outcomes(
        self, name: str, *, is_in_order: bool
    ) -> AsyncIterator[PipelineFailure | tuple[int, AsyncIterator[bytes]]]:
        """What became of each item. Raises NotFound."""
        ...

    def state(self, name: str) -> str:
        """How a pipeline stands. Raises NotFound."""
        ...


async def serve_pipeline(desk: PipelineDesk, opening: OpenPipeline, messages: MessageStream) -> None:
    """Makes a pipeline of what the program sends; it runs from the first item on, and goes on without the program."""
    id_ = await desk.open(opening.spec)
    messages.post(PipelineTaken(id_, 0))
    try:
        parts: list[bytes] = []
        size = 0
        while (payload := await messages.receive()) is not None:
            message = decode(payload, PipelineInput, step=STEP)
            if message.is_end:
                break
            size += len(message.data)
            if size > ITEM_BYTES_MAX or len(message.data) > VALUE_PART_BYTES_MAX:
                raise PeerMisbehaved("an item that is too large", step=STEP)
            parts.append(message.data)
            if message.is_last:
                await desk.add(id_, parts)
                parts, size = [], 0
    finally:
        # What came is run, also if the program was killed while it sent more.
        count = await desk.close_input(id_)
    messages.post(PipelineTaken(id_, count))
    await messages.flush()


async def serve_pipeline_results(desk: PipelineDesk, opening: OpenPipelineResults, messages: MessageStream) -> None:
    """Gives out results, as they come or in order, until the pipeline is over."""
    async for outcome in desk.outcomes(opening.name, is_in_order=opening.is_in_order):
        if isinstance(outcome, PipelineFailure):
            await messages.send(outcome)
            continue
        number, parts = outcome
        try:
            async for part in parts:
                for at in range(0, len(part), VALUE_PART_BYTES_MAX):
                    await messages.send(PipelineResult(number, part[at : at + VALUE_PART_BYTES_MAX], False))
            await messages.send(PipelineResult(number, b"", True))
        except CroftError as error:
            await messages.send(PipelineFailure(number, "", error.message))
    messages.post(PipelineOver(desk.state(opening.name)))
    await messages.flush()
