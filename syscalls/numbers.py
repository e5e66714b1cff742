"""Numbers of system calls, for filters (:mod:`passt.syscalls.seccomp`).

x86-64 has a table of its own.  Architectures that came to Linux later share one, with which
this kernel's headers define theirs: AArch64, RISC-V, LoongArch.  ``None`` stands for a call
that an architecture does not have.

Sources: asm/unistd_64.h, asm-generic/unistd.h, syscalls(2).
"""

from __future__ import annotations

#: By name: the columns are X86_64 and GENERIC of :mod:`passt.syscalls.seccomp`.
NUMBERS: dict[str, tuple[int, int | None]] = {
    "accept4": (288, 242),
    "bind": (49, 200),
    "bpf": (321, 280),
    "brk": (12, 214),
    "clock_gettime": (228, 113),
    "close": (3, 57),
    "connect": (42, 203),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fallocate": (285, 47),
    "fcntl": (72, 25),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "getdents64": (217, 61),
    "getpeername": (52, 205),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "inotify_add_watch": (254, 27),
    "ioctl": (16, 29),
    "listen": (50, 201),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "newfstatat": (262, 79),
    "openat": (257, 56),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "read": (0, 63),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "recvmmsg": (299, 243),
    "recvmsg": (47, 212),
    "restart_syscall": (219, 128),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setsockopt": (54, 208),
    "shutdown": (48, 210),
    "socket": (41, 198),
    "splice": (275, 76),
    "wait4": (61, 260),
    "write": (1, 64),
    "writev": (20, 66),
}
