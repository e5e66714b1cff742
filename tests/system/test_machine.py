"""passt, with a namespace for a virtual machine: traffic, guests that come and go, and misfits."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passt.syscalls.sockopt import UDP_SEGMENT
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.clients import Clients
from tests.system.kit.machine import Machine, Passt, passt_command
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Program
from tests.system.kit.topology import Topology
from tests.system.kit.users import User
from tests.system.start.runner import status

pytestmark = pytest.mark.system

SIZE = 20 << 20
StartPasst = Callable[..., Passt]
StartMachine = Callable[..., Machine]


@pytest.fixture
def start_passt(
    topology: Topology, program: Program, user: User, sockets: str
) -> Iterator[StartPasst]:
    """A function that starts a passt in ``host`` as the ordinary user."""
    if program.upstream:
        pytest.skip("the program under test is another pasta")
    instances: list[Passt] = []

    def start(*options: str) -> Passt:
        instances.append(Passt(program, topology.host, user, sockets, *options))
        return instances[-1]

    yield start
    for instance in instances:
        instance.close()


@pytest.fixture
def start_machine(topology: Topology, start_passt: StartPasst) -> Iterator[StartMachine]:
    """A function that starts a passt with the given options, and a machine that it serves."""
    machines: list[Machine] = []

    def start(*options: str, configure: bool = True) -> Machine:
        machines.append(Machine(topology, start_passt(*options), configure=configure))
        return machines[-1]

    yield start
    for machine in machines:
        machine.unplug()
        topology.remove(machine.ns)


def exchange(client: socket.socket, listener: socket.socket, size: int = SIZE) -> None:
    """Send content both ways at once, and compare it."""
    server, _ = listener.accept()
    with client, server:
        client.settimeout(60)
        server.settimeout(60)
        sending = [
            stream.Background(lambda sock=sock, seed=seed: stream.send(sock, size, seed))
            for seed, sock in enumerate((client, server))
        ]
        receiving = [
            stream.Background(lambda sock=sock: stream.receive(sock)) for sock in (server, client)
        ]
        for sent, received in zip(sending, receiving, strict=True):
            assert received.result() == (size, sent.result())


def echo_datagrams(client: socket.socket, server: socket.socket, size: int) -> None:
    """Send datagrams of *size*, and get them back."""
    for number in range(20):
        content = struct.pack("!I", number) * (size // 4)
        client.send(content)
        data, peer = server.recvfrom(65536)
        assert data == content
        server.sendto(data, peer)
        assert client.recv(65536) == content


@pytest.mark.parametrize("mtu", [1500, 65520])
def test_tcp_both_ways(start_machine: StartMachine, remote: Netns, version: int, mtu: int) -> None:
    machine = start_machine("--mtu", str(mtu))
    machine.ns.ip(f"link set dev eth0 mtu {mtu}\n")
    with remote.listen(net.REMOTE[version], 7000) as listener:
        exchange(machine.ns.connect(net.REMOTE[version], 7000), listener)


def test_the_host_by_the_gateway_address(
    start_machine: StartMachine, host: Netns, version: int
) -> None:
    machine = start_machine()
    with host.listen(net.LOOPBACK[version], 7000) as listener:
        exchange(machine.ns.connect(net.GATEWAY[version], 7000), listener, 1 << 20)
    with pytest.raises(ConnectionRefusedError):
        machine.ns.connect(net.GATEWAY[version], 7009)


def test_forwarded_ports(
    start_machine: StartMachine, host: Netns, remote: Netns, version: int
) -> None:
    """From loopback, too: there is no bypass, so it comes from the gateway's address."""
    machine = start_machine("-t", "7001", "-u", "7001")
    with machine.ns.listen(net.HOST[version], 7001) as listener:
        exchange(remote.connect(net.HOST[version], 7001), listener, 1 << 20)
        client = host.connect(net.LOOPBACK[version], 7001)
        server, peer = listener.accept()
        assert peer[0] == net.GATEWAY[version]
        server.close()
        client.close()
    with machine.ns.udp(net.HOST[version], 7001) as server:
        client = remote.udp(net.REMOTE[version])
        client.connect((net.HOST[version], 7001))
        with client:
            echo_datagrams(client, server, 1400)


@pytest.mark.parametrize("size", [4, 1400, 60000])
def test_udp(start_machine: StartMachine, remote: Netns, version: int, size: int) -> None:
    machine = start_machine()
    machine.ns.ip("link set dev eth0 mtu 65520\n")
    with remote.udp(net.REMOTE[version], 7000) as server:
        client = machine.ns.udp(family=server.family)
        client.connect((net.REMOTE[version], 7000))
        with client:
            echo_datagrams(client, server, size)


def test_many_datagrams(start_machine: StartMachine, remote: Netns, version: int) -> None:
    """They come in trains, which are cut here; the machine's kernel verifies checksums."""
    machine = start_machine("--mtu", "1500", "-u", "7001")
    contents = [struct.pack("!I", number) * 250 for number in range(60)]
    with machine.ns.udp(net.HOST[version], 7001) as server:
        sender = remote.udp(net.REMOTE[version])
        sender.connect((net.HOST[version], 7001))
        with sender:
            sender.send(contents[0])
            assert server.recv(65536) == contents[0]
            # One system call, so that they arrive together: segmentation offload.
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(contents[0]))
            sender.send(b"".join(contents))
            assert [server.recv(65536) for _ in contents] == contents


def test_ping(start_machine: StartMachine, version: int) -> None:
    machine = start_machine()
    ping = ["ping", f"-{version}", "-c3", "-i0.1", "-W5", "-q"]
    machine.ns.run([*ping, net.REMOTE[version]])


def test_dhcp_tells_resolvers(start_machine: StartMachine, tmp_path: Path) -> None:
    """Unlike pasta, passt does so by itself."""
    machine = start_machine("-D", net.REMOTE[4], "--search", "example.org", configure=False)
    clients = Clients(machine.ns, "eth0", tmp_path)
    clients.udhcpc()
    bound = clients.events.wait("bound")
    assert (bound["ip"], bound["router"]) == (net.HOST[4], net.GATEWAY[4])
    assert (bound["dns"], bound["search"]) == (net.REMOTE[4], "example.org")


def test_guests_come_and_go(start_machine: StartMachine, remote: Netns) -> None:
    machine = start_machine("-t", "7001")
    ping = ["ping", "-c1", "-W5", "-q", net.REMOTE[4]]
    machine.ns.run(ping)
    for _ in range(3):
        machine.unplug()
        machine.plug_in()
        machine.configure()
        machine.ns.run(ping)
    with machine.ns.listen(net.HOST[4], 7001) as listener:
        exchange(remote.connect(net.HOST[4], 7001), listener, 1 << 20)


def test_one_guest_at_a_time(start_passt: StartPasst) -> None:
    passt = start_passt()
    with passt.connect() as first:
        passt.said("Accepted UNIX socket connection")
        with passt.connect() as second:
            second_end = second.recv(1)
        assert second_end == b""
        passt.said("discarded")
        assert asked(first, ARP_REQUEST)


#: From a guest with the assigned address, for the gateway's.
ARP_REQUEST = (
    bytes.fromhex("ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456")
    + socket.inet_aton(net.HOST[4])
    + bytes(6)
    + socket.inet_aton(net.GATEWAY[4])
)


def framed(frame: bytes) -> bytes:
    return struct.pack("!I", len(frame)) + frame


def asked(sock: socket.socket, question: bytes) -> bool:
    """Send an ARP request, and tell whether an answer comes among other frames."""
    sock.sendall(framed(question))
    for _ in range(100):
        (size,) = struct.unpack("!I", stream.read_exactly(sock, 4))
        frame = stream.read_exactly(sock, size)
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
            return frame[28:32] == question[38:42]
    return False


def test_the_guest_is_asked_for_its_address(start_passt: StartPasst) -> None:
    with start_passt().connect() as guest:
        (size,) = struct.unpack("!I", stream.read_exactly(guest, 4))
        frame = stream.read_exactly(guest, size)
        assert (size, frame[:6], frame[12:14]) == (60, b"\xff" * 6, b"\x08\x06")
        assert frame[38:42] == socket.inet_aton(net.HOST[4])


def test_a_bad_length_costs_the_connection_only(start_passt: StartPasst) -> None:
    passt = start_passt()
    with passt.connect() as guest:
        guest.sendall(struct.pack("!I", 13))
        guest.settimeout(5)
        with pytest.raises((EOFError, ConnectionResetError)):
            stream.read_exactly(guest, 1 << 20)
    passt.said("Bad frame size from guest, resetting connection")
    with passt.connect() as guest:
        guest.sendall(framed(ARP_REQUEST)[:17])
    passt.said("Client connection closed")
    with passt.connect() as guest:
        assert asked(guest, ARP_REQUEST)


def test_a_guest_that_does_not_read_holds_up_nobody(start_passt: StartPasst, host: Netns) -> None:
    passt = start_passt("-u", "7001")
    with passt.connect() as guest, host.udp("127.0.0.1") as sender:
        assert asked(guest, ARP_REQUEST)
        sender.connect(("127.0.0.1", 7001))
        for _ in range(300):
            sender.send(bytes(8000))
        # Still served: a second guest is refused at once.
        with passt.connect() as second:
            assert second.recv(1) == b""
        # And the frames that come are whole: the answer is found behind them.
        assert asked_behind_others(guest)


def asked_behind_others(guest: socket.socket) -> bool:
    """Read what has piled up, which must be frames, then ask."""
    guest.settimeout(1)
    while True:
        try:
            (size,) = struct.unpack("!I", stream.read_exactly(guest, 4))
        except TimeoutError:
            break
        assert 60 <= size <= 65535
        stream.read_exactly(guest, size)
    guest.settimeout(10)
    return asked(guest, ARP_REQUEST)


def test_rules_are_changed_by_pesto(start_machine: StartMachine, host: Netns, sockets: str) -> None:
    machine = start_machine("-c", f"{sockets}/control")
    pesto = [sys.executable, "-m", "passt.userspace.cli.pesto"]
    host.run([*pesto, "-A", "-t", "7002", f"{sockets}/control"])
    with machine.ns.listen(net.HOST[4], 7002) as listener:
        exchange(host.connect("127.0.0.1", 7002), listener, 1 << 20)
    shown = host.run([*pesto, f"{sockets}/control"]).stdout
    assert "7002" in shown
    assert "SPLICE" not in shown
    host.run([*pesto, "-C", "HOST", f"{sockets}/control"])
    with pytest.raises(ConnectionRefusedError):
        host.connect("127.0.0.1", 7002)


def test_capture(start_machine: StartMachine, sockets: str) -> None:
    path = f"{sockets}/capture"
    machine = start_machine("-p", path)
    machine.ns.run(["ping", "-c1", "-W5", "-s", "1000", "-q", net.REMOTE[4]])
    shown = machine.ns.run(["tcpdump", "-nr", path, "icmp"]).stdout
    assert "echo request" in shown
    assert f"{net.REMOTE[4]} > {net.HOST[4]}: ICMP echo reply" in shown


@pytest.mark.parametrize("starter", ["user", "root"])
def test_state_of_the_process(
    topology: Topology, program: Program, user: User, sockets: str, starter: str
) -> None:
    """Whoever starts it; root is nobody from then on, and the socket remains root's."""
    who, port = (user, 7001) if starter == "user" else (User("root"), 80)
    passt = Passt(program, topology.host, who, sockets, "-t", str(port))
    try:
        machine = Machine(topology, passt)
        topology.host.wait_listening(port)
        pid = passt.process.pid
        fields = status(pid)
        assert (fields["Seccomp"], fields["NoNewPrivs"], fields["Threads"]) == ("2", "1", "1")
        for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            assert fields[name] == "0" * 16, name
        uid = user.uid if starter == "user" else User("nobody").uid
        assert fields["Uid"] == " ".join([str(uid)] * 4)
        assert os.stat(passt.path).st_uid == who.uid
        root = f"/proc/{pid}/root"
        assert os.listdir(root) == []
        assert os.statvfs(root).f_flag & os.ST_RDONLY
        for kind in ("user", "mnt", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        machine.unplug()
        topology.remove(machine.ns)
    finally:
        passt.close()


# Ways to start.


@pytest.fixture
def run_passt(
    program: Program, host: Netns, user: User, sockets: str
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs passt to its end, in the folder of sockets, with given options."""
    words = passt_command(program)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return host.run([*words, *options], prefix=user.prefix, check=False, timeout=20)

    return run


RunPasst = Callable[..., subprocess.CompletedProcess[str]]


def test_background_and_one_off(run_passt: RunPasst, sockets: str) -> None:
    path, pid_file = f"{sockets}/one-off.socket", f"{sockets}/pid"
    done = run_passt("--one-off", "--socket", path, "--pid", pid_file)
    assert done.returncode == 0, done.stderr
    assert f"UNIX domain socket bound at {path}\n" in done.stderr
    assert f"path={path}" in done.stderr
    pid = int(Path(pid_file).read_text())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
            guest.connect(path)
            guest.settimeout(10)
            assert asked(guest, ARP_REQUEST)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="end of passt with its guest")
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGKILL)


def test_as_libvirt_starts_it(run_passt: RunPasst, remote: Netns, sockets: str) -> None:
    path, pid_file = f"{sockets}/VM-net0.socket", f"{sockets}/VM-net0-passt.pid"
    done = run_passt(
        *("--one-off", "--socket", path, "--pid", pid_file, "--mtu", "1400"),
        *("--interface", "eth0", "--log-file", f"{sockets}/log", "--hostname", "vm"),
        *("--address", net.HOST[4], "--netmask", "24", "--address", net.HOST[6]),
        *("--tcp-ports", f"{net.HOST[4]}%eth0/7001-7003:8001-8003,~7002"),
        *("--udp-ports", "7001:8001"),
    )
    assert done.returncode == 0, done.stderr
    pid = int(Path(pid_file).read_text())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
            guest.connect(path)
            guest.settimeout(10)
            assert asked(guest, ARP_REQUEST)
            with remote.connect(net.HOST[4], 7003), pytest.raises(ConnectionRefusedError):
                remote.connect(net.HOST[4], 7002)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="end of passt with its guest")
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGKILL)
    with open(f"{sockets}/log") as log:
        assert "Client connection closed, exiting" in log.read()


def test_quiet(run_passt: RunPasst, sockets: str) -> None:
    pid_file = f"{sockets}/pid"
    done = run_passt(
        "-q", "-D", "192.0.2.1", "-D", "2001:db8::1", "-s", f"{sockets}/s", "-P", pid_file
    )
    os.kill(int(Path(pid_file).read_text()), signal.SIGTERM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("background", [False, True])
def test_a_connection_that_is_passed(
    program: Program, host: Netns, user: User, sockets: str, number: int, background: bool
) -> None:
    """By QEMU, or a super-server; descriptors of the standard three, too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid_file = f"{sockets}/pid"
    options = ["-t", "7001", "--fd", str(number), "-P", pid_file, "-q", "-D", "none"]
    if not background:
        options.insert(0, "-f")
    words = [*host.prefix, *user.prefix, *passt_command(program), *options]
    move = "import os, sys; os.dup2(*map(int, sys.argv[1:3])); os.execvp(sys.argv[3], sys.argv[3:])"
    python = [sys.executable, "-S", "-c", move, str(theirs.fileno()), str(number)]
    with ours:
        process = host.processes.start([*python, *words], pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(20)
        assert asked(ours, ARP_REQUEST)
        if background:
            assert process.wait(10) == 0
    if not background:
        assert process.wait(10) == 0
    pid = int(Path(pid_file).read_text())
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="end of passt with its guest")


def test_what_is_refused(run_passt: RunPasst, start_passt: StartPasst, sockets: str) -> None:
    taken = start_passt().path
    precious = f"{sockets}/precious"
    Path(precious).write_text("data")
    for options, line in (
        (("-s", taken), f"Socket path {taken} already in use"),
        (("-s", precious), f"{precious} exists and is not a socket"),
        (("-s", "/" + "x" * 107), f"Invalid socket path: /{'x' * 107}"),
        (("-s", ""), "Invalid socket path: "),
        (("-s", "/nowhere/at/all"), "Failed to bind UNIX domain socket: No such file or directory"),
        (("--fd", "x"), "Invalid --fd: x"),
        (("--fd", "77"), "Invalid --fd: 77: Bad file descriptor"),
        (("--fd", "0"), "Invalid --fd: 0: Socket operation on non-socket"),
        (("--config-net",), "--config-net is for pasta mode only"),
        (("-T", "80"), "-T is for pasta mode only"),
        (("--netns", "x"), "--netns is for pasta mode only"),
        (("command",), "Extra non-option argument: command"),
        (("-t", "auto", "-s", f"{sockets}/s"), ""),
    ):
        done = run_passt("-q", "-D", "none", *options)
        assert done.returncode == 1, options
        assert not line or done.stderr.split("\n")[0] == line
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert Path(precious).read_text() == "data"


def test_options_of_passt_in_pasta(program: Program, host: Netns, user: User) -> None:
    for options, line in (
        (("-s", "/tmp/x"), "-s is for passt mode only\n"),
        (("--fd", "3"), "--fd is for passt mode only\n"),
        (("--one-off",), "--one-off is for passt mode only\n"),
    ):
        words = [*program.argv, *options]
        done = host.run(words, prefix=user.prefix, check=False)
        assert (done.returncode, done.stderr) == (1, line)


def test_the_default_path(run_passt: RunPasst, sockets: str) -> None:
    """The first that is free, whoever holds those before."""
    pid_file = f"{sockets}/pid"
    done = run_passt("-P", pid_file)
    os.kill(int(Path(pid_file).read_text()), signal.SIGTERM)
    path = next(
        line.partition(" bound at ")[2]
        for line in done.stderr.splitlines()
        if "UNIX domain socket bound at " in line
    )
    os.unlink(path)
    assert done.returncode == 0
    assert path.startswith("/tmp/passt_")


def test_print_seccomp(run_passt: RunPasst) -> None:
    done = run_passt("--print-seccomp")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert len(names) == len(set(names)) <= 50
    assert {"recvfrom", "sendto", "accept4"} <= set(names)
    assert not {"splice", "pipe2", "wait4", "exit"} & set(names)


def test_two_at_the_same_time(program: Program, host: Netns, user: User) -> None:
    """Each has a path of its own."""
    words = [*passt_command(program), "-f", "-D", "none"]
    starting = [
        host.popen(words, prefix=user.prefix, stderr=subprocess.PIPE, cwd="/") for _ in range(4)
    ]
    paths = []
    for process in starting:
        assert process.stderr
        line = process.stderr.readline()
        while " bound at " not in line:
            assert line
            line = process.stderr.readline()
        paths.append(line.partition(" bound at ")[2].strip())
    for process in starting:
        host.processes.stop(process)
    for path in paths:
        os.unlink(path)
    assert len(set(paths)) == len(paths)


def test_ends_of_others_are_none_of_our_business(start_machine: StartMachine) -> None:
    machine = start_machine()
    machine._passt.process.send_signal(signal.SIGCHLD)
    machine.ns.run(["ping", "-c1", "-W5", "-q", net.REMOTE[4]])


def test_version_and_help(run_passt: RunPasst) -> None:
    assert run_passt("--version").stdout.startswith("passt ")
    assert '"type": "net"' in run_passt("--print-capabilities").stdout
    assert "--socket" in run_passt("--help").stdout
    assert run_passt("--bogus").returncode == 1
