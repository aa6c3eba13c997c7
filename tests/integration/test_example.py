"""The example of scanned pages, as its README says it: four peers of unlike people make a site that can be searched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "scanned_pages"
PLAY_S_MAX = 120.0


def test_scanned_pages_become_a_site_that_can_be_searched() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CROFT_", "XDG_"))}
    played = subprocess.run(
        [sys.executable, EXAMPLE / "run.py"],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=PLAY_S_MAX,
        stdin=subprocess.DEVNULL,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    pipeline, _, site = played.stdout.partition("curl")
    for page in ("/garden-1931", "/harvest-1932", "/letters-1933"):
        assert f"\n{page}\n" in pipeline
    assert "archive/garden-1931.txt" in pipeline and "3 items, 3 stages" in pipeline
    # Only in two of the three is there a word of pears; the index is Noor's, the site Sam's, the reading Maria's.
    assert "garden-1931</a>" in site and "letters-1933</a>" in site and "harvest-1932" not in site
    assert "The [pear] trees" in site
