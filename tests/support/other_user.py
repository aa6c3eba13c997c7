"""Lets commands of a test run as a user who is not root, also where that user cannot reach the interpreter."""

from __future__ import annotations

import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

USER = 1000
STAGE = "/mnt"
REPOSITORY = Path(__file__).parents[2]


def wrapped_as_user(user: int = USER) -> Sequence[str]:
    """What to write before a command, as root, so that it runs as `user`.

    Folders that hide the interpreter or the program from others are covered, in a mount namespace that only the
    command sees, by empty ones in which just these parts appear.
    """
    hidden = {Path(path): closed for path in _needed() if (closed := _closed_parent(Path(path)))}
    script = [f"mount -t tmpfs -o mode=755 stage {STAGE}"] if hidden else []
    for number, path in enumerate(hidden):
        script += [f"mkdir {STAGE}/{number}", f"mount --rbind {shlex.quote(str(path))} {STAGE}/{number}"]
    for closed in sorted(set(hidden.values())):
        script.append(f"mount -t tmpfs -o mode=755 cover {shlex.quote(str(closed))}")
    for number, path in enumerate(hidden):
        place = shlex.quote(str(path))
        script += [f"mkdir -p {place}", f"mount --rbind {STAGE}/{number} {place}"]
    script.append(f'exec setpriv --reuid={user} --regid={user} --clear-groups -- "$@"')
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", "\n".join(script), "sh"]


def _needed() -> list[str]:
    return sorted({sys.prefix, sys.base_prefix, str(REPOSITORY)})


def _closed_parent(path: Path) -> Path | None:
    """The outermost folder above `path` that others may not enter."""
    for parent in reversed(path.resolve().parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def give(folder: Path, user: int = USER) -> None:
    """Makes `folder` the user's own, and the way to it open."""
    import os

    os.chown(folder, user, user)
    for parent in folder.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
