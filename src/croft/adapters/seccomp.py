"""Compiles the system-call filter of a box to BPF, for x86_64 and aarch64.

The filter allows, except: calls that reach into the kernel, other processes or other namespaces (EPERM), calls newer
than this table (ENOSYS, so that programs fall back), and the calls of foreign ABIs (the process is killed). See
seccomp(2) and `linux/bpf_common.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass

NEWEST_CALL = 462
"""`mseal`, Linux 6.10. Calls above this number are unknown here, hence answered with ENOSYS."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_OFFSET_CALL, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16

_PR_SET_NO_NEW_PRIVS, _SECCOMP_SET_MODE_FILTER = 38, 1

Numbers = tuple[int | None, int | None]
"""A call's number on x86_64 and on aarch64; None where it does not exist."""

_DENIED: dict[str, Numbers] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # large or fragile parts of the kernel that no task needs
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_secret": (447, 447),
    "map_shadow_stack": (453, 453),
    "vmsplice": (278, 75),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "lsm_set_self_attr": (460, 460),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}

_UNKNOWN: dict[str, Numbers] = {"clone3": (435, 435)}
"""Answered with ENOSYS: the C library then uses `clone`, whose flags can be inspected."""

_DENIED_WITHOUT_NAMESPACES: dict[str, Numbers] = {
    # objects shared with the whole machine
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "ioprio_set": (251, 30),
}

_DENIED_WITHOUT_OWN_USER: dict[str, Numbers] = {
    # Landlock does not restrict these, and files of the peer's user would obey
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}

_DENIED_WITHOUT_MEMORY_LIMIT: dict[str, Numbers] = {
    # memory that belongs to no process, so that nothing but a control group counts it
    "memfd_create": (319, 279),
    "shmget": (29, 194),
}

_CLONE: Numbers = (56, 220)
_SOCKET: Numbers = (41, 198)
_SOCKETPAIR: Numbers = (53, 199)
_IOCTL: Numbers = (16, 29)
_PERSONALITY: Numbers = (135, 92)
_SETPRIORITY: Numbers = (141, 140)
_OWN_PROCESS_ONLY: tuple[Numbers, ...] = (
    (302, 261),  # prlimit64
    (144, 119),  # sched_setscheduler
    (142, 118),  # sched_setparam
    (203, 122),  # sched_setaffinity
    (314, 274),  # sched_setattr
)

_CLONE_NEW_ANYTHING = 0x7E020080
_AF_UNIX = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PERSONALITY_PLAIN, _PERSONALITY_QUERY = 0, 0xFFFFFFFF

_Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, operand."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """Collects instructions for one architecture (0: x86_64, 1: aarch64)."""

    column: int
    program: list[_Instruction]

    def add(self, operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        self.program.append((operation, if_true, if_false, operand & 0xFFFFFFFF))

    def refuse(self, calls: Iterable[Numbers], number: int) -> None:
        """Answers these calls with an errno. Expects the call's number in the accumulator."""
        for call in calls:
            if call[self.column] is not None:
                self.add(_IF_EQUAL, call[self.column] or 0, 0, 1)
                self.add(_RETURN, _ERRNO | number)

    def require(self, call: Numbers, argument: int, allowed: tuple[int, ...], number: int) -> None:
        """Refuses a call unless its argument is one of `allowed`."""
        self._begin(call, argument, length=len(allowed) + 1)
        for position, value in enumerate(allowed):
            self.add(_IF_EQUAL, value, len(allowed) - position, 0)
        self.add(_RETURN, _ERRNO | number)
        self.add(_LOAD, _OFFSET_CALL)

    def forbid(self, call: Numbers, argument: int, values: tuple[int, ...], number: int) -> None:
        """Refuses a call if its argument is one of `values`."""
        self._begin(call, argument, length=2 * len(values))
        for value in values:
            self.add(_IF_EQUAL, value, 0, 1)
            self.add(_RETURN, _ERRNO | number)
        self.add(_LOAD, _OFFSET_CALL)

    def forbid_bits(self, call: Numbers, argument: int, bits: int, number: int) -> None:
        """Refuses a call if any of `bits` is set in its argument."""
        self._begin(call, argument, length=2)
        self.add(_IF_BITS, bits, 0, 1)
        self.add(_RETURN, _ERRNO | number)
        self.add(_LOAD, _OFFSET_CALL)

    def _begin(self, call: Numbers, argument: int, length: int) -> None:
        # Skips the block, its load of the argument and its final reload, if this is another call.
        self.add(_IF_EQUAL, call[self.column] or 0, 0, length + 2)
        self.add(_LOAD, _OFFSET_ARGUMENTS + 8 * argument)


def compile_filter(
    *,
    has_namespaces: bool = True,
    has_own_user: bool = True,
    has_memory_limit: bool = True,
    architecture: str = "",
) -> bytes:
    """The filter as an array of `struct sock_filter`, in the byte order of this machine.

    A box without namespaces of its own also loses Unix sockets, shared IPC objects, and influence on processes other
    than the caller; one that runs as the peer's own user loses changes of ownership, mode, times and attributes; one
    without a hard memory limit loses memory that no process owns.

    Raises:
        KeyError: the architecture is not supported.
    """
    architecture = architecture or platform.machine()
    rules = _Rules(list(_ARCHITECTURES).index(architecture) if architecture in _ARCHITECTURES else -1, [])
    rules.add(_LOAD, _OFFSET_ARCHITECTURE)
    rules.add(_IF_EQUAL, _ARCHITECTURES[architecture], 1, 0)
    rules.add(_RETURN, _KILL_PROCESS)
    rules.add(_LOAD, _OFFSET_CALL)
    # Also refuses the x32 calls of x86_64, whose numbers have bit 30 set.
    rules.add(_IF_AT_LEAST, NEWEST_CALL + 1, 0, 1)
    rules.add(_RETURN, _ERRNO | errno.ENOSYS)
    rules.refuse(_UNKNOWN.values(), errno.ENOSYS)
    rules.refuse(_DENIED.values(), errno.EPERM)
    if not has_memory_limit:
        rules.refuse(_DENIED_WITHOUT_MEMORY_LIMIT.values(), errno.EPERM)
    if not has_namespaces:
        rules.refuse(_DENIED_WITHOUT_NAMESPACES.values(), errno.EPERM)
    if not has_namespaces and not has_own_user:
        rules.refuse(_DENIED_WITHOUT_OWN_USER.values(), errno.EPERM)
    rules.forbid_bits(_CLONE, 0, _CLONE_NEW_ANYTHING, errno.EPERM)
    rules.forbid(_IOCTL, 1, (_TIOCSTI, _TIOCLINUX), errno.EPERM)
    rules.require(_PERSONALITY, 0, (_PERSONALITY_PLAIN, _PERSONALITY_QUERY), errno.EPERM)
    rules.require(_SOCKETPAIR, 0, (_AF_UNIX,), errno.EAFNOSUPPORT)
    if has_namespaces:
        rules.require(_SOCKET, 0, (_AF_UNIX,), errno.EAFNOSUPPORT)
    else:
        rules.require(_SOCKET, 0, (), errno.EAFNOSUPPORT)
        for call in _OWN_PROCESS_ONLY:
            rules.require(call, 0, (0,), errno.EPERM)
        rules.require(_SETPRIORITY, 0, (0,), errno.EPERM)
        rules.require(_SETPRIORITY, 1, (0,), errno.EPERM)
    rules.add(_RETURN, _ALLOW)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in rules.program)


def install_filter(program: bytes) -> None:
    """Puts the calling thread, and all that it starts from now on, under the filter. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(_SECCOMP_CALL[platform.machine()], _SECCOMP_SET_MODE_FILTER, 0, description):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
