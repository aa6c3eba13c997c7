"""Decides which modules a function takes along: those that a peer cannot have, because they are the user's own.

What is installed (the standard library, site-packages) travels by name, and must be there; what lies elsewhere travels
by value, with the functions that use it.
"""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import cloudpickle

_INSTALLED = tuple(
    {
        str(Path(folder).resolve())
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (folder := sysconfig.get_path(name))
    }
)
_checked: set[str] = set()


def take_along_local_modules() -> None:
    """Makes cloudpickle carry by value whatever local modules are loaded now."""
    for name in [name for name in sys.modules if name not in _checked]:
        _checked.add(name)
        module = sys.modules.get(name)
        if module is not None and is_local(name, module):
            cloudpickle.register_pickle_by_value(module)


@cache
def _is_elsewhere(place: str) -> bool:
    return not str(Path(place).resolve()).startswith(_INSTALLED)


def is_local(name: str, module: ModuleType) -> bool:
    """Whether a module is the user's own. Croft itself is on every peer, wherever it lies here."""
    place = getattr(module, "__file__", None)
    if not isinstance(place, str) or name == "__main__" or name.partition(".")[0] == "croft":
        return False
    return _is_elsewhere(place)
