"""Runs a command on a machine that can hold no native code: `python without_boxes.py COMMAND...`.

What namespaces and Landlock need is answered with an error by a system-call filter, which all that is started inherits.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

MOUNT = {"x86_64": 165, "aarch64": 40}[platform.machine()]
LANDLOCK = (444, 445, 446)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD_NUMBER, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | 38


def deny() -> None:
    """Denies the calls, for ever. Needs root."""
    denied = (MOUNT, *LANDLOCK)
    program = [(LOAD_NUMBER, 0, 0, 0)]
    program += [(JUMP_IF_EQUAL, len(denied) - at, 0, number) for at, number in enumerate(denied)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, NO_SUCH_CALL)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter: this needs root")


if __name__ == "__main__":
    deny()
    os.execvp(sys.argv[1], sys.argv[1:])
