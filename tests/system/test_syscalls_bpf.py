"""bpf(2) on the kernel at hand: elements of maps, programs, pins, memory of maps."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from passt.syscalls import bpf
from passt.syscalls.ns import CLONE_NEWNET, mount, umount, unshare
from passt.syscalls.sockopt import SO_ATTACH_BPF, SO_DETACH_BPF

pytestmark = pytest.mark.system

#: Instructions: r0 = n; exit.
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)


def returning(number: int) -> bytes:
    return struct.pack("=BBhi", 0xB7, 0, 0, number) + EXIT


@pytest.fixture
def table() -> Iterator[int]:
    fd = bpf.map_create(bpf.MAP_TYPE_HASH, 4, 8, 3, name="a_long_name_that_is_cut")
    yield fd
    os.close(fd)


@pytest.fixture
def bpffs(folder: str) -> Iterator[str]:
    path = f"{folder}/bpffs"
    os.mkdir(path)
    mount("bpf", path, "bpf")
    yield path
    umount(path)
    os.rmdir(path)


def key(number: int) -> bytes:
    return struct.pack("=I", number)


def test_elements(table: int) -> None:
    for number in range(3):
        bpf.map_update(table, key(number), bytes([number]) * 8)
    assert bpf.map_lookup(table, key(1), 8) == b"\1" * 8
    assert sorted(bpf.map_keys(table, 4)) == [key(n) for n in range(3)]
    assert sorted(bpf.map_lookup_batch(table, 4, 8, 10)) == [
        (key(n), bytes([n]) * 8) for n in range(3)
    ]
    bpf.map_delete(table, key(1))
    with pytest.raises(OSError, match="MAP_LOOKUP_ELEM") as caught:
        bpf.map_lookup(table, key(1), 8)
    assert caught.value.errno == errno.ENOENT


def test_element_flags(table: int) -> None:
    with pytest.raises(OSError) as missing:
        bpf.map_update(table, key(1), bytes(8), bpf.EXIST)
    assert missing.value.errno == errno.ENOENT
    bpf.map_update(table, key(1), bytes(8), bpf.NOEXIST)
    with pytest.raises(FileExistsError):
        bpf.map_update(table, key(1), bytes(8), bpf.NOEXIST)


def test_full_map(table: int) -> None:
    for number in range(3):
        bpf.map_update(table, key(number), bytes(8))
    with pytest.raises(OSError) as caught:
        bpf.map_update(table, key(3), bytes(8))
    assert caught.value.errno == errno.E2BIG


def test_empty_map(table: int) -> None:
    assert bpf.map_keys(table, 4) == []
    assert bpf.map_lookup_batch(table, 4, 8, 10) == []


def test_info(table: int) -> None:
    info = bpf.map_info(table)
    assert (info.kind, info.key_size, info.value_size, info.entries) == (
        bpf.MAP_TYPE_HASH,
        4,
        8,
        3,
    )


def test_memory_is_shared_with_the_kernel() -> None:
    fd = bpf.map_create(bpf.MAP_TYPE_ARRAY, 4, 8, 512, flags=bpf.F_MMAPABLE)
    memory = bpf.map_memory(fd, 4096, writable=True)
    memory[7] = 1 << 40
    assert bpf.map_lookup(fd, key(7), 8) == struct.pack("=Q", 1 << 40)
    bpf.map_update(fd, key(8), struct.pack("=Q", 5))
    assert memory[8] == 5
    reading = bpf.map_memory(fd, 4096, writable=False)
    with pytest.raises(TypeError):
        reading[0] = 1
    os.close(fd)


def test_ring_is_readable_only_with_data() -> None:
    fd = bpf.map_create(bpf.MAP_TYPE_RINGBUF, 0, 0, 4096)
    assert select.select([fd], [], [], 0) == ([], [], [])
    os.close(fd)


def test_program_as_socket_filter() -> None:
    deaf = bpf.prog_load(bpf.PROG_TYPE_SOCKET_FILTER, returning(0), name="deaf")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, deaf)
        sock.sendto(b"lost", sock.getsockname())
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_BPF, 0)
        sock.sendto(b"heard", sock.getsockname())
        assert sock.recv(100) == b"heard"
    os.close(deaf)


def test_verifier_explains() -> None:
    with pytest.raises(bpf.VerifierError) as caught:
        bpf.prog_load(bpf.PROG_TYPE_SOCKET_FILTER, EXIT)
    assert "R0 !read_ok" in caught.value.log


def test_attach_to_map_of_sockets() -> None:
    socks = bpf.map_create(bpf.MAP_TYPE_SOCKHASH, 4, 8, 4)
    program = bpf.prog_load(
        bpf.PROG_TYPE_SK_SKB, returning(1), attach_type=bpf.SK_SKB_VERDICT, name="pass"
    )
    bpf.prog_attach(program, socks, bpf.SK_SKB_VERDICT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    bpf.map_update(socks, key(1), struct.pack("=Q", server.fileno()))
    assert bpf.map_keys(socks, 4) == [key(1)]
    client.sendall(b"passed")
    assert server.recv(100) == b"passed"
    bpf.map_delete(socks, key(1))
    client.sendall(b"plain")
    assert server.recv(100) == b"plain"
    bpf.map_update(socks, key(2), struct.pack("=Q", server.fileno()))
    # Whoever is closed leaves by itself.
    server.close()
    assert bpf.map_keys(socks, 4) == []
    with socket.socket() as unconnected, pytest.raises(OSError) as caught:
        bpf.map_update(socks, key(1), struct.pack("=Q", unconnected.fileno()))
    assert caught.value.errno == errno.EOPNOTSUPP
    bpf.prog_detach(program, socks, bpf.SK_SKB_VERDICT)
    with pytest.raises(FileNotFoundError):
        bpf.prog_detach(program, socks, bpf.SK_SKB_VERDICT)
    client.close()
    os.close(socks)
    os.close(program)


def test_pins(bpffs: str, table: int) -> None:
    bpf.map_update(table, key(1), b"12345678")
    bpf.obj_pin(table, f"{bpffs}/table")
    with pytest.raises(FileExistsError):
        bpf.obj_pin(table, f"{bpffs}/table")
    again = bpf.obj_get(f"{bpffs}/table")
    assert bpf.map_info(again).id == bpf.map_info(table).id
    assert bpf.map_lookup(again, key(1), 8) == b"12345678"
    os.close(again)
    os.unlink(f"{bpffs}/table")
    with pytest.raises(FileNotFoundError):
        bpf.obj_get(f"{bpffs}/table")


def test_unprivileged_users_may_open_what_is_theirs(bpffs: str, table: int) -> None:
    """The command on elements and pins, not those that make anything."""
    os.chmod(bpffs, 0o755)
    for name, owner in (("mine", 65534), ("other", 0)):
        bpf.obj_pin(table, f"{bpffs}/{name}")
        os.chown(f"{bpffs}/{name}", owner, owner)
        os.chmod(f"{bpffs}/{name}", 0o600)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        found = []
        try:
            bpf.map_update(bpf.obj_get(f"{bpffs}/mine"), key(2), b"from him")
            found.append("mine")
            bpf.obj_get(f"{bpffs}/other")
        except PermissionError:
            found.append("refused")
        try:
            bpf.map_create(bpf.MAP_TYPE_HASH, 4, 8, 3)
        except PermissionError:
            found.append("refused")
        os.write(writer, " ".join(found).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    assert os.read(reader, 100) == b"mine refused refused"
    os.close(reader)
    assert bpf.map_lookup(table, key(2), 8) == b"from him"


def test_what_is_attached_where() -> None:
    """Attached by a link: the program, its name and maps are found from the namespace."""
    passing = returning(1)
    program = bpf.prog_load(
        bpf.PROG_TYPE_SK_LOOKUP, passing, attach_type=bpf.SK_LOOKUP, name="passt_test"
    )
    table = bpf.map_create(bpf.MAP_TYPE_ARRAY, 4, 8, 2, name="passt_numbers")
    # r1 = table; r0 = 0; exit
    load = struct.pack("=BBhi", 0x18, bpf.PSEUDO_MAP_FD << 4 | 1, 0, table) + bytes(8)
    other = bpf.prog_load(bpf.PROG_TYPE_SOCKET_FILTER, load + returning(0), name="passt_other")
    pid = os.fork()
    if pid == 0:
        # In a namespace of its own, where nothing else is attached.
        status = 1
        try:
            unshare(CLONE_NEWNET)
            netns = os.open("/proc/self/ns/net", os.O_RDONLY)
            assert bpf.prog_query(netns, bpf.SK_LOOKUP) == []
            link = bpf.link_create(program, netns, bpf.SK_LOOKUP)
            (number,) = bpf.prog_query(netns, bpf.SK_LOOKUP)
            found = bpf.prog_by_id(number)
            assert bpf.prog_info(found) == ("passt_test", [])
            os.close(link)
            assert bpf.prog_query(netns, bpf.SK_LOOKUP) == []
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    name, (number,) = bpf.prog_info(other)
    assert name == "passt_other"
    again = bpf.map_by_id(number)
    assert bpf.map_info(again).name == "passt_numbers"
    assert bpf.map_info(again).id == bpf.map_info(table).id == number
    for fd in (program, table, other, again):
        os.close(fd)
    with pytest.raises(OSError, match="PROG_GET_FD_BY_ID"):
        bpf.prog_by_id(0xFFFFFFFF)
