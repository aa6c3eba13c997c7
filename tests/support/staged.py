"""A world that is told step by step, as a state machine wants it, not by one story."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

from croft.sim.world import World, simulate

Step = Callable[[World], Awaitable[Any]]


class StagedWorld:
    """Plays a simulation in a thread of its own. Between steps its virtual time stands still."""

    def __init__(self, seed: int, repeat: str) -> None:
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._play, args=(seed, repeat), name="world", daemon=True)
        self._thread.start()

    def do(self, step: Step) -> Any:
        """What a step returns; raises what it raises, or what ended the world meanwhile."""
        self._steps.put(step)
        result, error = self._outcomes.get()
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """Ends the world. Raises what is wrong with it: a failed service, an error in the log, a task that is left."""
        if self._thread.is_alive():
            self._steps.put(None)
            _, error = self._outcomes.get()
            self._thread.join()
            if error is not None:
                raise error

    def _play(self, seed: int, repeat: str) -> None:
        async def story(world: World) -> None:
            while (step := self._steps.get()) is not None:
                try:
                    self._outcomes.put((await step(world), None))
                except Exception as error:  # it is the step's caller who is told
                    self._outcomes.put((None, error))

        try:
            simulate(story, seed=seed, repeat=repeat, limit_virtual_s=1e9)
            self._outcomes.put((None, None))
        except BaseException as error:
            self._outcomes.put((None, error))
