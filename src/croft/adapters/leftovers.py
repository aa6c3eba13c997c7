"""Removes what boxes left on this machine when their peer was killed: control groups and folders.

A box dies with its peer, but nobody is left to remove what it was given. Everything of that kind carries the process
id of its peer; what belongs to a living process, whosever it is, stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from croft.adapters.box_process import BOX_FOLDER_PREFIX, box_folder_parents, remove_folder
from croft.adapters.bubblewrap_sandbox import BOX_UID_COUNT, BOX_UID_FIRST
from croft.adapters.cgroup import find_control_groups, is_of_the_dead

log = logging.getLogger(__name__)


def remove_leftovers() -> int:
    """Removes all that dead peers left; returns how many things there were. Blocks: call it off the event loop."""
    removed = 0
    groups = find_control_groups()
    if not isinstance(groups, str):
        for group in groups.abandoned():
            group.remove()
            removed += 1
    for folder in _abandoned_folders():
        try:
            remove_folder(folder)
            removed += 1
        except OSError as error:
            log.warning("%s, left by a peer that was killed: %s", folder, error.strerror)
    return removed


def _abandoned_folders() -> Iterator[Path]:
    for parent in box_folder_parents():
        for folder in parent.glob(f"{BOX_FOLDER_PREFIX}*"):
            if is_of_the_dead(folder.name.removeprefix(BOX_FOLDER_PREFIX)) and _is_ours(folder):
                yield folder


def _is_ours(folder: Path) -> bool:
    # Anybody may make folders of any name in /tmp.
    try:
        owner = folder.lstat().st_uid
    except OSError:
        return False
    is_of_a_box = os.geteuid() == 0 and BOX_UID_FIRST <= owner < BOX_UID_FIRST + BOX_UID_COUNT
    return owner == os.geteuid() or is_of_a_box
