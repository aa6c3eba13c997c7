"""Decides when a backup is to run. Sans-IO."""

from __future__ import annotations

import math
from typing import Final

RETRY_S: Final = 600.0
"""A run that failed is tried again so much later, or sooner if it is due sooner."""
EVERY_S_MIN: Final = 60.0


def due_at(every_s: float, now: float, began_at: float, *, is_whole: bool, is_interrupted: bool) -> float:
    """When it is due, Unix seconds; infinite: only when it is told to.

    Args:
        began_at: when the last run began; 0: there was none.
        is_whole: whether that came to its end. is_interrupted: whether the machine, or the peer, ended before it did.
    """
    if not every_s:
        return math.inf
    # A run in the future was made by a clock that was wrong.
    if not began_at or began_at > now or is_interrupted:
        return now
    return began_at + (every_s if is_whole else min(every_s, RETRY_S))
