"""Restricts this process and all it starts to listed paths, by Landlock (Linux 5.13 and later).

See landlock(7) and `linux/landlock.h`. Imports only the standard library: the box launcher uses it before it gives
up its rights.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable

SIGNAL_SCOPE_VERSION = 6
"""From this version on a restricted process can also be kept from signalling others."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_RIGHTS_COUNT = {1: 13, 2: 14, 3: 15, 4: 15}
_RIGHTS_COUNT_NEWEST = 16
_NET_TCP = 0b11
_SCOPE_ALL = 0b11
_NET_VERSION = 4

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """The version of Landlock's interface in this kernel; 0 if there is none."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    return max(0, version)


def restrict_paths(read_only: Iterable[str], writable: Iterable[str]) -> None:
    """Leaves this process, for ever, only these paths and what is below them, no TCP and no signals to others.

    Paths that do not exist are skipped. What the kernel's version does not know stays open: see SIGNAL_SCOPE_VERSION.

    Raises:
        OSError: Landlock is missing or refuses.
    """
    version = landlock_version()
    every_right = (1 << _RIGHTS_COUNT.get(version, _RIGHTS_COUNT_NEWEST)) - 1
    attributes = struct.pack("=QQQ", every_right, _NET_TCP, _SCOPE_ALL)
    size = 24 if version >= SIGNAL_SCOPE_VERSION else 16 if version >= _NET_VERSION else 8
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
    for paths, rights in (
        (read_only, _EXECUTE | _READ_FILE | _READ_DIR),
        (writable, every_right),
    ):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                _allow(ruleset, path, rights & every_right)
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
