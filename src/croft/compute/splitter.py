"""Decides how many tasks go to a lender in one chunk, and what is worth giving to another one in the end.

Large chunks spare messages and forks; small ones share the tail evenly. So a chunk is worth CHUNK_S of the lender's
measured time, grows from one task at a bounded rate while nothing is known, and shrinks with what is left (factoring,
Hummel, Schonberg and Flynn 1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHUNK_S = 0.05
CHUNK_TASKS_MAX = 2_000
CHUNK_BYTES_MAX = 4 << 20
GROWTH = 8
SMOOTHING_MIN = 0.1
"""Of a new measurement; the first ones weigh more."""
FACTOR = 2
"""A chunk takes at most 1/(FACTOR · slots) of what is left."""
TASK_S_MIN = 1e-6
HELP_S_MIN = 0.1
"""What takes less than this elsewhere is not worth a message."""
HELP_FACTOR = 1.0
"""A helper must be so much faster than what it helps, as far as can be told."""
TAIL_FACTOR = 0.7
COPY_AGAIN_FACTOR = 1.0
"""There is no further copy of a task until what the copier takes, so many times, has passed since the last one."""


@dataclass(slots=True)
class Pace:
    """How fast one lender works on one bag of tasks. `task_s` is None until its first chunk is back."""

    task_s: float | None = None
    largest: int = 0
    chunks: int = 0

    def learn(self, tasks: int, elapsed_s: float) -> None:
        """Takes in that `tasks` took `elapsed_s` on one slot, as its lender says; what cannot be is left out."""
        if tasks <= 0 or not math.isfinite(elapsed_s):
            return
        measured = max(elapsed_s / tasks, TASK_S_MIN)
        self.largest = max(self.largest, tasks)
        self.chunks += 1
        weight = max(SMOOTHING_MIN, 1 / self.chunks)
        self.task_s = measured if self.task_s is None else self.task_s + weight * (measured - self.task_s)


def chunk_tasks(pace: Pace, *, waiting: int, slots_total: int) -> int:
    """How many of the `waiting` tasks the next chunk may hold, at least one, given all lenders' `slots_total`."""
    if pace.task_s is None:
        return 1
    by_time = int(CHUNK_S / pace.task_s)
    by_growth = max(pace.largest, 1) * GROWTH
    by_share = waiting // (FACTOR * max(slots_total, 1))
    return max(1, min(by_time, by_growth, by_share, CHUNK_TASKS_MAX))


def remaining_s(task_s: float, running_s: float) -> float:
    """How much longer a task may be expected to run where one takes `task_s` on average.

    At first what is left of the average; of one that has run longer, the longer it has run the more, as it is with
    durations that vary much.
    """
    return max(task_s - running_s, TAIL_FACTOR * running_s)


def is_worth_it(due_s: float, helped_s: float) -> bool:
    """Whether to let a helper do in `helped_s` what will be done in `due_s` anyway."""
    return due_s > HELP_FACTOR * helped_s + HELP_S_MIN
