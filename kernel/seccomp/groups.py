"""The list of system calls.

For a call without condition no filter runs: the kernel knows that it is allowed before
(:mod:`passt.syscalls.seccomp`).  So the calls that carry traffic have none; conditions
are for those by which one could get at something new: other kinds of sockets, terminals and
devices, executable memory.  None of the calls takes a path, but for one that is not in
ordinary profiles.

The interpreter and its C library differ by version in the calls they make for the same thing;
the reasons name who needs what.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket
from passt.syscalls import bpf, sockopt
from passt.syscalls.seccomp import Argument
from passt.syscalls.tun import TUNSETPERSIST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.syscalls.seccomp import Condition

_PROT_EXEC = 4
_MAP_ANONYMOUS = 0x20
_NOT_EXECUTABLE = Argument(2, (0,), _PROT_EXEC)

# Requests of ioctl(2) and fcntl(2): asm-generic/ioctls.h, linux/fcntl.h.
_TIOCOUTQ, _FIONREAD, _FIONBIO = 0x5411, 0x541B, 0x5421
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032

_TYPE_BITS = 0xFFFFFFFF & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

#: Socket options by level, with their names.
_OPTIONS: dict[int, tuple[str, dict[str, int]]] = {
    socket.SOL_SOCKET: (
        "SOL_SOCKET",
        {
            "SO_REUSEADDR": socket.SO_REUSEADDR,
            "SO_BROADCAST": socket.SO_BROADCAST,
            "SO_KEEPALIVE": socket.SO_KEEPALIVE,
            "SO_OOBINLINE": socket.SO_OOBINLINE,
            "SO_LINGER": socket.SO_LINGER,
            "SO_BINDTODEVICE": socket.SO_BINDTODEVICE,
            "SO_PEEK_OFF": sockopt.SO_PEEK_OFF,
            "SO_DETACH_FILTER": sockopt.SO_DETACH_FILTER,
        },
    ),
    socket.IPPROTO_IP: (
        "IPPROTO_IP",
        {
            "IP_TTL": socket.IP_TTL,
            "IP_PKTINFO": sockopt.IP_PKTINFO,
            "IP_RECVERR": sockopt.IP_RECVERR,
            "IP_FREEBIND": sockopt.IP_FREEBIND,
            "IP_MULTICAST_TTL": socket.IP_MULTICAST_TTL,
            "IP_MULTICAST_IF": socket.IP_MULTICAST_IF,
            "IP_MULTICAST_ALL": sockopt.IP_MULTICAST_ALL,
            "MCAST_JOIN_GROUP": sockopt.MCAST_JOIN_GROUP,
            "MCAST_MSFILTER": sockopt.MCAST_MSFILTER,
        },
    ),
    socket.IPPROTO_IPV6: (
        "IPPROTO_IPV6",
        {
            "IPV6_UNICAST_HOPS": socket.IPV6_UNICAST_HOPS,
            "IPV6_MULTICAST_HOPS": socket.IPV6_MULTICAST_HOPS,
            "IPV6_MULTICAST_IF": socket.IPV6_MULTICAST_IF,
            "IPV6_MULTICAST_ALL": sockopt.IPV6_MULTICAST_ALL,
            "MCAST_JOIN_GROUP": sockopt.MCAST_JOIN_GROUP,
            "MCAST_MSFILTER": sockopt.MCAST_MSFILTER,
            "IPV6_RECVERR": sockopt.IPV6_RECVERR,
            "IPV6_V6ONLY": socket.IPV6_V6ONLY,
            "IPV6_RECVPKTINFO": socket.IPV6_RECVPKTINFO,
            "IPV6_FREEBIND": sockopt.IPV6_FREEBIND,
        },
    ),
    socket.IPPROTO_TCP: ("IPPROTO_TCP", {"TCP_NODELAY": socket.TCP_NODELAY}),
    socket.IPPROTO_UDP: ("IPPROTO_UDP", {"UDP_GRO": sockopt.UDP_GRO}),
}


class Call:
    """A system call by name; ``why`` it is needed, and what its arguments must be.

    ``limits`` are the conditions in words, empty if there are none.
    """

    __slots__ = ("condition", "limits", "name", "why")

    def __init__(self, name: str, why: str, limits: str = "", condition: Condition = ()) -> None:
        self.name = name
        self.why = why
        self.limits = limits
        self.condition = condition


class Group:
    """Calls that serve one purpose."""

    __slots__ = ("calls", "name", "purpose")

    def __init__(self, name: str, purpose: str, *calls: Call) -> None:
        self.name = name
        self.purpose = purpose
        self.calls = calls


LOOP = Group(
    "loop",
    "Waiting for events and time.",
    Call("epoll_wait", "sleep until something happens; x86-64 with glibc"),
    Call("epoll_pwait", "the same where there is no epoll_wait, or musl is the C library"),
    Call("epoll_ctl", "watch sockets that come and go"),
    Call("clock_gettime", "read the clock where the vDSO cannot, as with some hypervisors"),
)

TRAFFIC = Group(
    "traffic",
    "Carrying data; none of these has a condition, so that no filter runs for them.",
    Call("read", "signals and other events, lists of ports, splicing by hand"),
    Call("write", "frames to the tap; messages, captures, wake-ups of the loop"),
    Call("recvfrom", "data of TCP, frames from a machine, single datagrams, sock_diag(7)"),
    Call("sendto", "data of TCP, frames to a machine, single datagrams, the log, sock_diag(7)"),
    Call("recvmsg", "datagrams with ancillary data, error queues"),
    Call("sendmsg", "data in several pieces, trains of datagrams"),
    Call("recvmmsg", "several datagrams at once"),
    Call("sendmmsg", "several datagrams at once"),
)

SOCKETS = Group(
    "sockets",
    "The life of connections. A thread in a namespace makes its sockets under the same "
    "filter. No other families: netlink(7), packet(7), unix(7) and vsock(7) are out of reach.",
    Call(
        "socket",
        "connections, flows, pings, forwarded ports",
        "AF_INET, AF_INET6; SOCK_STREAM, SOCK_DGRAM; default protocol, IPPROTO_ICMP, "
        "IPPROTO_ICMPV6",
        (
            (
                Argument(0, (socket.AF_INET, socket.AF_INET6)),
                Argument(1, (socket.SOCK_STREAM, socket.SOCK_DGRAM), _TYPE_BITS),
                Argument(2, (0, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)),
            ),
        ),
    ),
    Call("bind", "the guest's source ports, forwarded ports"),
    Call("connect", "what the guest connects to"),
    Call("listen", "forwarded ports that open while we run"),
    Call("accept4", "connections to forwarded ports, clients of the control socket"),
    Call("shutdown", "one direction of a connection has ended"),
    Call("close", "everything has an end"),
    Call("getsockname", "the address a connection came to, the port that the kernel chose"),
    Call("getpeername", "whether the peer is this machine"),
    Call("getsockopt", "TCP_INFO for each acknowledgement, SO_ERROR, sizes of buffers"),
)


def _setsockopt(why: str, options: dict[int, tuple[str, dict[str, int]]]) -> Call:
    """The call that sets ``options``, by level."""
    return Call(
        "setsockopt",
        why,
        "; ".join(f"{level}: {', '.join(names)}" for level, names in options.values()),
        tuple(
            (Argument(1, (level,)), Argument(2, tuple(names.values())))
            for level, (_, names) in options.items()
        ),
    )


_SETSOCKOPT = "options of each new socket; TTL and peek offset of existing ones"

NAMESPACE = Group(
    "namespace",
    "Serving a namespace: its tap, its processes, the bypass between loopback interfaces.",
    Call("readv", "frames from the tap into several buffers"),
    Call("writev", "frames to the tap, header and payload"),
    Call("splice", "data between sockets, by way of a pipe"),
    Call("pipe2", "pipes for that"),
    Call(
        "fcntl",
        "their capacity",
        "F_SETPIPE_SZ, F_GETPIPE_SZ",
        ((Argument(1, (_F_SETPIPE_SZ, _F_GETPIPE_SZ)),),),
    ),
    _setsockopt(_SETSOCKOPT, _OPTIONS),
    Call(
        "ioctl",
        "how much is queued in a socket; the interpreter's way to make one non-blocking; leaving "
        "the tap to a namespace at its end",
        "FIONBIO, FIONREAD, TIOCOUTQ (also known as SIOCOUTQ), TUNSETPERSIST",
        ((Argument(1, (_FIONBIO, _FIONREAD, _TIOCOUTQ, TUNSETPERSIST)),),),
    ),
    Call("lseek", "reading lists of ports and directories anew"),
    Call("getdents64", "whether the namespace's entry is still in its directory"),
    Call("wait4", "the exit status of the spawned command"),
    Call("rt_sigprocmask", "the C library, at the end of a thread"),
    Call("exit", "the end of the thread in the namespace"),
)

MACHINE = Group(
    "machine",
    "Serving a virtual machine: no namespace, no thread, no bypass.",
    _setsockopt(
        f"{_SETSOCKOPT}; the queue towards the guest",
        {
            **_OPTIONS,
            socket.SOL_SOCKET: (
                "SOL_SOCKET",
                {**_OPTIONS[socket.SOL_SOCKET][1], "SO_SNDBUF": socket.SO_SNDBUF},
            ),
        },
    ),
    Call(
        "ioctl",
        "how much is queued in a socket; the interpreter's way to make one non-blocking",
        "FIONBIO, FIONREAD, TIOCOUTQ (also known as SIOCOUTQ)",
        ((Argument(1, (_FIONBIO, _FIONREAD, _TIOCOUTQ)),),),
    ),
)

FILES = Group(
    "files",
    "Log file and capture, all open already: nothing here takes a path.",
    Call("pread64", "the log file, when it is cut"),
    Call("pwrite64", "entries of the log file"),
    Call("ftruncate", "the log file, when it is cut, or the disk is full"),
    Call("fallocate", "cutting the start of the log file"),
    Call("fsync", "log file and capture, at the end"),
)

INTERPRETER = Group(
    "interpreter",
    "Memory, threads and the end of the Python interpreter and the C library. Memory is never "
    "executable, and never that of a file.",
    Call(
        "mmap",
        "memory of the allocators",
        "MAP_ANONYMOUS, not PROT_EXEC",
        ((_NOT_EXECUTABLE, Argument(3, (_MAP_ANONYMOUS,), _MAP_ANONYMOUS)),),
    ),
    Call("munmap", "giving it back"),
    Call("mremap", "growing and shrinking large blocks in place; keeps their protection"),
    Call(
        "mprotect",
        "glibc: memory of allocations outside the main thread is reserved first, and used later",
        "not PROT_EXEC",
        ((_NOT_EXECUTABLE,),),
    ),
    Call("madvise", "giving back pages of memory that stays reserved"),
    Call("brk", "the heap of the main thread"),
    Call("futex", "locks: the interpreter's own, and the queue of the namespace's thread"),
    Call("sched_yield", "Python without global lock, waiting for one of its short locks"),
    Call("rt_sigreturn", "the end of a signal handler; no handler is installed any more"),
    Call("restart_syscall", "a wait goes on after SIGSTOP and SIGCONT, or a tracer"),
    Call("exit_group", "the end"),
)


ACCELERATION = Group(
    "acceleration",
    "Only with --accel=ebpf in force: sockets enter maps that are open already, and leave them.",
    Call(
        "bpf",
        "the kernel begins or ceases to forward a connection, or to lead many to one socket",
        "BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM",
        ((Argument(0, (bpf.MAP_UPDATE_ELEM, bpf.MAP_DELETE_ELEM)),),),
    ),
    Call(
        "setsockopt",
        "the receive buffer keeps one size meanwhile; a socket is deaf while it leaves",
        "SOL_SOCKET: SO_RCVBUF, SO_BUF_LOCK, SO_ATTACH_BPF, SO_DETACH_BPF; IPPROTO_TCP: "
        "TCP_WINDOW_CLAMP",
        (
            (
                Argument(1, (socket.SOL_SOCKET,)),
                Argument(
                    2,
                    (
                        socket.SO_RCVBUF,
                        sockopt.SO_BUF_LOCK,
                        sockopt.SO_ATTACH_BPF,
                        sockopt.SO_DETACH_BPF,
                    ),
                ),
            ),
            (
                Argument(1, (socket.IPPROTO_TCP,)),
                Argument(2, (socket.TCP_WINDOW_CLAMP,)),
            ),
        ),
    ),
)


def lookup(directory: int) -> Group:
    """For a namespace's entry in ``directory``, a descriptor, which we may not list."""
    return Group(
        "lookup",
        "Only with --netns or a PID, if the namespace's directory can be entered, but not "
        "read by us.",
        Call(
            "newfstatat",
            "whether the namespace's entry is still there",
            "the directory's descriptor",
            ((Argument(0, (directory,)),),),
        ),
    )
