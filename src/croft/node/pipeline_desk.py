"""Pipelines as the local API shows and fills them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.control.pipelines import Outcome
from croft.control.work_messages import PipelineFailure
from croft.model.ids import PeerId
from croft.twins.pipeline import kept_at
from croft.twins.pipeline_store import PipelineSpec
from croft.twins.pipelines import Running

if TYPE_CHECKING:
    from croft.node.assemble import Parts

ERRORS_SHOWN: Final = 5


class PipelineDesk:
    """Fulfils `croft.control.pipelines.PipelineDesk` and `croft.control.pipelines_app.Pipelines`."""

    def __init__(self, parts: Parts) -> None:
        self._pipelines = parts.calling.pipelines
        self._name_of = parts.overlay.name_of

    # --- filling and emptying ----------------------------------------------------------------------------------------

    async def open(self, spec: PipelineSpec) -> str:
        """A new pipeline. Raises Usage, NotFound, Busy."""
        return await self._pipelines.open(spec)

    async def add(self, id_: str, parts: Sequence[bytes]) -> None:
        """One more item. Raises CroftError."""
        await self._pipelines.add(id_, parts)

    async def close_input(self, id_: str) -> int:
        """No more items come; how many there are. Raises CroftError."""
        return await self._pipelines.close_input(id_)

    async def outcomes(self, name: str, *, is_in_order: bool) -> AsyncIterator[Outcome]:
        """What became of each item. Raises NotFound."""
        stages = self._pipelines.get(name).kept.spec.stages
        async for number, item in self._pipelines.outcomes(name, is_in_order=is_in_order):
            held = item.held[-1] if item.held else None
            if item.error or held is None:
                yield PipelineFailure(number, stages[min(item.stage, len(stages) - 1)].name, item.error)
            else:
                yield number, self._pipelines.read(held)

    def state(self, name: str) -> str:
        """How a pipeline stands. Raises NotFound."""
        return self._pipelines.get(name).kept.state

    # --- showing -----------------------------------------------------------------------------------------------------

    def pipelines(self) -> list[schema.Pipeline]:
        """Newest first."""
        return [self._shown(running) for running in self._pipelines.all()]

    def pipeline(self, name: str) -> schema.Pipeline:
        """One, by its id or name. Raises NotFound."""
        return self._shown(self._pipelines.get(name))

    async def cancel_pipeline(self, name: str) -> schema.Pipeline:
        """Ends it; what is through stays. Raises NotFound."""
        return self._shown(await self._pipelines.cancel(name))

    async def forget_pipeline(self, name: str) -> schema.Pipeline:
        """Ends it and drops its results. Raises NotFound."""
        return self._shown(await self._pipelines.forget(name))

    def _shown(self, running: Running) -> schema.Pipeline:
        kept, items = running.kept, running.core.items
        over = [item for item in items if item.is_over]
        failed = [item for item in over if item.error]
        stages = [
            schema.PipelineStage(
                name=stage.name,
                waiting=sum(not item.is_over and item.peer is None and item.stage == at for item in items),
                running=sum(count.running.values()),
                done=sum(item.stage > at for item in items),
                failed=count.failed,
                peers=self._peers(running, at),
                is_missing=stage.name in running.asks,
            )
            for at, (stage, count) in enumerate(zip(kept.spec.stages, running.core.counts, strict=True))
        ]
        return schema.Pipeline(
            pipeline=kept.id,
            name=kept.spec.name,
            state=kept.state,
            created_at=kept.created_at,
            ended_at=kept.ended_at,
            items=len(items),
            done=len(over) - len(failed),
            failed=len(failed),
            waiting_for_consent=len(running.waiting_for_consent),
            stages=stages,
            kept_bytes={self._name_of(peer): size for peer, size in kept_at(items).items()},
            errors=[item.error for item in failed[:ERRORS_SHOWN]],
        )

    def _peers(self, running: Running, stage: int) -> list[schema.PipelinePeer]:
        count = running.core.counts[stage]
        peers = dict.fromkeys([*count.running, *count.done])
        return [
            schema.PipelinePeer(name=self._name_of(PeerId(peer)), running=count.running[peer], done=count.done[peer])
            for peer in peers
        ]
