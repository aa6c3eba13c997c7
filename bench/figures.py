"""What the benchmarks that yield one table of figures print and write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def report(figures: Mapping[str, float], place: Path | None) -> None:
    """Prints a line per figure, and writes all of them as JSON to `place` if it is given."""
    width = max(map(len, figures)) + 2
    for name, value in figures.items():
        print(f"{name:<{width}}{value:.3g}")
    if place:
        place.write_text(json.dumps(figures, indent=1), encoding="utf-8")
