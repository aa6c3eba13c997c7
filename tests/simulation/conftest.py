"""Lets the simulated implementations use the test suites that the real ones have to pass."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))
