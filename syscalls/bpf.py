"""Programs and maps in the kernel: bpf(2), and the memory that maps may share.

One function per command, with exactly the fields of ``union bpf_attr`` that the command needs:
the kernel takes a shorter record than its own for one that ends in zeros, which is how newer
fields stay optional.  Descriptors that commands return have close-on-exec set by the kernel.

Which commands an unprivileged process may use: those on elements of maps whose descriptors it
has, and :func:`obj_get` on a pinned object whose file permissions allow it.  To make maps, load
and attach programs takes CAP_BPF and CAP_NET_ADMIN in the initial user namespace, or a *token*
(:func:`token_create`, Linux 6.9), by which the owner of a bpffs mount delegates that.

Keys and values are bytes in the machine's own byte order.

Sources: bpf(2), linux/bpf.h, Documentation/bpf/ of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

from passt.syscalls.libc import check, error, syscall

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280}

# Commands.
_MAP_CREATE = 0
MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
MAP_GET_NEXT_KEY = 4
_PROG_LOAD = 5
_OBJ_PIN = 6
_OBJ_GET = 7
_PROG_ATTACH = 8
_PROG_DETACH = 9
_PROG_GET_FD_BY_ID = 13
_MAP_GET_FD_BY_ID = 14
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16
MAP_LOOKUP_BATCH = 24
_LINK_CREATE = 28
_TOKEN_CREATE = 36

# Types of maps.
MAP_TYPE_HASH = 1
MAP_TYPE_ARRAY = 2
MAP_TYPE_SOCKMAP = 15
MAP_TYPE_SOCKHASH = 18
MAP_TYPE_RINGBUF = 27

# Flags of maps: elements are allocated as needed; the memory can be mapped.
F_NO_PREALLOC = 1
F_MMAPABLE = 1 << 10
_F_TOKEN_FD = 1 << 16

# Flags of :func:`map_update`: any case, only a new element, only one that exists.
ANY = 0
NOEXIST = 1
EXIST = 2

# Types of programs and of what they are attached to.
PROG_TYPE_SOCKET_FILTER = 1
PROG_TYPE_SOCK_OPS = 13
PROG_TYPE_SK_SKB = 14
PROG_TYPE_SK_LOOKUP = 30
CGROUP_SOCK_OPS = 3
SK_LOOKUP = 36
SK_SKB_VERDICT = 38

#: Source register of an instruction that loads a map, given by its descriptor.
PSEUDO_MAP_FD = 1

_NAME_LENGTH = 15
_LOG_SIZE = 1 << 16
#: The kernel's own size of the record does not matter, but a record of zeros is as good.
_ATTR_SIZE = 160

#: Programs in one place, and maps of a program: more are not asked for.
_MAX_PROGRAMS = 64
_MAX_MAPS = 16
# struct bpf_prog_info up to the name: where the number and addresses of maps, and the name, are.
_PROG_INFO_SIZE, _PROG_INFO_MAPS, _PROG_INFO_NAME = 80, 52, 64
#: Where PROG_QUERY leaves how many programs there are.
_QUERY_COUNT = 24

_U32 = struct.Struct("=I")
_ELEMENT = struct.Struct("=I4xQQQ")
_number = _NUMBERS.get(os.uname().machine, -1)


class VerifierError(OSError):
    """The kernel refused a program; :attr:`log` is what the verifier had to say."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, f"bpf PROG_LOAD: {os.strerror(number)}")
        self.log = log


def _bpf(command: int, attr: bytes, name: str) -> int:
    """Run ``command`` on the record ``attr``; returns its result, raises OSError."""
    if _number < 0:
        raise error(errno.ENOSYS, f"bpf {name}")
    buffer = ctypes.create_string_buffer(attr, len(attr))
    return check(syscall(_number, command, ctypes.addressof(buffer), len(attr)), f"bpf {name}")


def _name(text: str) -> bytes:
    return text.encode("ascii")[:_NAME_LENGTH]


def map_create(
    kind: int,
    key_size: int,
    value_size: int,
    entries: int,
    *,
    flags: int = 0,
    name: str = "",
    token: int = -1,
) -> int:
    """Make a map and return its descriptor; sizes in bytes.

    ``token`` is a descriptor of :func:`token_create`, −1 for none.  OSError: EPERM without
    privilege, EINVAL where the kernel lacks the kind or a flag, E2BIG where it has no tokens.
    """
    attr = bytearray(_ATTR_SIZE if token >= 0 else 48)
    struct.pack_into("=5I", attr, 0, kind, key_size, value_size, entries, flags)
    attr[28 : 28 + len(_name(name))] = _name(name)
    if token >= 0:
        # map_token_fd, behind map_extra and value_type_btf_obj_fd.
        attr = attr[:80]
        struct.pack_into("=I", attr, 16, flags | _F_TOKEN_FD)
        struct.pack_into("=i", attr, 76, token)
    return _bpf(_MAP_CREATE, bytes(attr), "MAP_CREATE")


def _element(command: int, name: str, fd: int, key: bytes, value: bytes, flags: int = 0) -> bytes:
    """Run a command on an element; the value as it is afterwards."""
    keys = ctypes.create_string_buffer(key, len(key))
    values = ctypes.create_string_buffer(value, len(value)) if value else None
    _bpf(
        command,
        _ELEMENT.pack(
            fd,
            ctypes.addressof(keys),
            0 if values is None else ctypes.addressof(values),
            flags,
        ),
        name,
    )
    return b"" if values is None else values.raw


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes:
    """The value of ``key``, of as many bytes as values of the map have; OSError ENOENT."""
    return _element(MAP_LOOKUP_ELEM, "MAP_LOOKUP_ELEM", fd, key, bytes(value_size))


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Set the value of ``key``; in a map of sockets, it is a descriptor.

    OSError: E2BIG when the map is full, EEXIST and ENOENT according to ``flags``, EOPNOTSUPP for
    a socket that is not connected.
    """
    _element(MAP_UPDATE_ELEM, "MAP_UPDATE_ELEM", fd, key, value, flags)


def map_delete(fd: int, key: bytes) -> None:
    """Remove ``key``; OSError ENOENT (EINVAL in maps of sockets) if it is not there."""
    _element(MAP_DELETE_ELEM, "MAP_DELETE_ELEM", fd, key, b"")


def map_keys(fd: int, key_size: int) -> list[bytes]:
    """All keys of a map that nobody changes meanwhile."""
    keys: list[bytes] = []
    following = ctypes.create_string_buffer(key_size)
    while True:
        last = ctypes.create_string_buffer(keys[-1], key_size) if keys else None
        address = 0 if last is None else ctypes.addressof(last)
        attr = struct.pack("=I4xQQ", fd, address, ctypes.addressof(following))
        try:
            _bpf(MAP_GET_NEXT_KEY, attr, "MAP_GET_NEXT_KEY")
        except OSError as e:
            if e.errno == errno.ENOENT:
                return keys
            raise
        keys.append(following.raw)


def map_lookup_batch(
    fd: int, key_size: int, value_size: int, count: int
) -> list[tuple[bytes, bytes]]:
    """Up to ``count`` elements of a map, of those that come first, in one call (Linux 5.6)."""
    keys = ctypes.create_string_buffer(key_size * count)
    values = ctypes.create_string_buffer(value_size * count)
    position = ctypes.create_string_buffer(max(key_size, 4))
    attr = ctypes.create_string_buffer(
        struct.pack(
            "=QQQQIIQQ",
            0,
            ctypes.addressof(position),
            ctypes.addressof(keys),
            ctypes.addressof(values),
            count,
            fd,
            0,
            0,
        )
    )
    if _number < 0:
        raise error(errno.ENOSYS, "bpf MAP_LOOKUP_BATCH")
    if syscall(_number, MAP_LOOKUP_BATCH, ctypes.addressof(attr), 56) == -1:
        number = ctypes.get_errno()
        # The end of the map, which is no error: the count is right.
        if number != errno.ENOENT:
            raise error(number, "bpf MAP_LOOKUP_BATCH")
    (found,) = _U32.unpack_from(attr.raw, 32)
    return [
        (
            keys.raw[n * key_size : (n + 1) * key_size],
            values.raw[n * value_size : (n + 1) * value_size],
        )
        for n in range(found)
    ]


def prog_load(
    kind: int,
    code: bytes,
    *,
    attach_type: int = 0,
    licence: str = "GPL",
    name: str = "",
    token: int = -1,
) -> int:
    """Load a program of 8-byte instructions and return its descriptor.

    Raises :class:`VerifierError` if the kernel does not accept it; EPERM without privilege.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    words = ctypes.create_string_buffer(licence.encode("ascii"))

    def attr(log: int, size: int) -> bytes:
        record = bytearray(148 if token >= 0 else 72)
        struct.pack_into(
            "=IIQQIIQII",
            record,
            0,
            kind,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(words),
            1 if log else 0,
            size,
            log,
            0,
            _F_TOKEN_FD if token >= 0 else 0,
        )
        record[48 : 48 + len(_name(name))] = _name(name)
        struct.pack_into("=I", record, 68, attach_type)
        if token >= 0:
            # prog_token_fd, behind log_true_size.
            struct.pack_into("=i", record, 144, token)
        return bytes(record)

    try:
        return _bpf(_PROG_LOAD, attr(0, 0), "PROG_LOAD")
    except OSError as e:
        if e.errno in (errno.EPERM, errno.ENOSYS):
            raise
        number = e.errno or errno.EINVAL
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return _bpf(_PROG_LOAD, attr(ctypes.addressof(log), _LOG_SIZE), "PROG_LOAD")
    except OSError:
        raise VerifierError(number, log.value.decode("utf-8", "replace")) from None


def prog_attach(program: int, target: int, attach_type: int) -> None:
    """Attach ``program`` to ``target``: the descriptor of a map of sockets, for one."""
    _bpf(_PROG_ATTACH, struct.pack("=IIII", target, program, attach_type, 0), "PROG_ATTACH")


def prog_detach(program: int, target: int, attach_type: int) -> None:
    """Detach ``program`` from ``target``; OSError ENOENT if it is not attached there."""
    _bpf(_PROG_DETACH, struct.pack("=IIII", target, program, attach_type, 0), "PROG_DETACH")


def link_create(program: int, target: int, attach_type: int) -> int:
    """Attach ``program`` to ``target`` for as long as the result is open.

    Targets are network namespaces and control groups.  The kernel asks for no privilege: having
    the program's descriptor is enough.
    """
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0), "LINK_CREATE")


def _path_attr(path: str, fd: int) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    text = ctypes.create_string_buffer(os.fsencode(path))
    return struct.pack("=QII", ctypes.addressof(text), fd, 0), text


def obj_pin(fd: int, path: str) -> None:
    """Give the object behind ``fd`` a name in a bpffs; OSError EEXIST, EPERM for another one."""
    attr, _text = _path_attr(path, fd)
    _bpf(_OBJ_PIN, attr, "OBJ_PIN")


def obj_get(path: str) -> int:
    """Open a pinned object, for reading and writing; OSError ENOENT, EACCES."""
    attr, _text = _path_attr(path, 0)
    return _bpf(_OBJ_GET, attr, "OBJ_GET")


def prog_query(target: int, attach_type: int) -> list[int]:
    """The numbers of the programs attached to ``target``, in their order; takes CAP_NET_ADMIN."""
    numbers = ctypes.create_string_buffer(4 * _MAX_PROGRAMS)
    record = struct.pack(
        "=IIIIQI", target, attach_type, 0, 0, ctypes.addressof(numbers), _MAX_PROGRAMS
    )
    attr = ctypes.create_string_buffer(record, 64)
    if _number < 0:
        raise error(errno.ENOSYS, "bpf PROG_QUERY")
    check(syscall(_number, _PROG_QUERY, ctypes.addressof(attr), 64), "bpf PROG_QUERY")
    (count,) = _U32.unpack_from(attr.raw, _QUERY_COUNT)
    return list(struct.unpack_from(f"={count}I", numbers.raw))


def prog_by_id(number: int) -> int:
    """A descriptor of a program by its number; takes CAP_SYS_ADMIN.  OSError ENOENT."""
    return _bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), "PROG_GET_FD_BY_ID")


def map_by_id(number: int) -> int:
    """A descriptor of a map by its number; takes CAP_SYS_ADMIN.  OSError ENOENT."""
    return _bpf(_MAP_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), "MAP_GET_FD_BY_ID")


def prog_info(fd: int) -> tuple[str, list[int]]:
    """Name of the program behind ``fd``, and the numbers of its maps; OSError."""
    maps = ctypes.create_string_buffer(4 * _MAX_MAPS)
    record = bytearray(_PROG_INFO_SIZE)
    struct.pack_into("=IQ", record, _PROG_INFO_MAPS, _MAX_MAPS, ctypes.addressof(maps))
    info = ctypes.create_string_buffer(bytes(record), len(record))
    attr = struct.pack("=IIQ", fd, len(record), ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO_BY_FD, attr, "OBJ_GET_INFO_BY_FD")
    (count,) = _U32.unpack_from(info.raw, _PROG_INFO_MAPS)
    name = info.raw[_PROG_INFO_NAME : _PROG_INFO_NAME + 16].partition(b"\0")[0]
    return name.decode("ascii", "replace"), list(
        struct.unpack_from(f"={min(count, _MAX_MAPS)}I", maps.raw)
    )


class MapInfo:
    """What a map is: type, number, sizes in bytes, number of entries, flags, name."""

    __slots__ = ("entries", "flags", "id", "key_size", "kind", "name", "value_size")

    def __init__(
        self,
        kind: int,
        number: int,
        key_size: int,
        value_size: int,
        entries: int,
        flags: int,
        name: bytes = b"",
    ) -> None:
        self.kind = kind
        self.id = number
        self.key_size = key_size
        self.value_size = value_size
        self.entries = entries
        self.flags = flags
        self.name = name.partition(b"\0")[0].decode("ascii", "replace")


def map_info(fd: int) -> MapInfo:
    """Describe the map behind ``fd``; OSError EINVAL if it is none."""
    info = ctypes.create_string_buffer(40)
    attr = struct.pack("=IIQ", fd, 40, ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO_BY_FD, attr, "OBJ_GET_INFO_BY_FD")
    return MapInfo(*struct.unpack("=6I16s", info.raw))


def token_create(bpffs: int) -> int:
    """A token from a bpffs mounted with delegation, by a descriptor of its root directory.

    OSError: ENOENT if nothing is delegated, EOPNOTSUPP in the initial user namespace, EINVAL
    before Linux 6.9, EPERM outside the user namespace that the mount belongs to.
    """
    return _bpf(_TOKEN_CREATE, struct.pack("=II", 0, bpffs), "TOKEN_CREATE")


def map_memory(fd: int, size: int, *, writable: bool, offset: int = 0) -> memoryview:
    """The memory of a map made with :data:`F_MMAPABLE`, or of a ring buffer, as 64-bit numbers.

    Each is read and written at once, as the kernel does.  ``size`` and ``offset`` in bytes,
    whole pages.
    """
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    area = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=prot, offset=offset)
    return memoryview(area).cast("Q")
