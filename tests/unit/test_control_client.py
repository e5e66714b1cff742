"""The client's end: servers of ours, servers of the original, and servers that misbehave."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passt.userspace.control import client as client_module
from passt.userspace.control import server as server_module
from passt.userspace.control.client import Connection, ControlError
from passt.userspace.control.protocol import INCOMPLETE, REFUSED, pack_request, pack_state
from passt.userspace.flow.rules import HOST, RuleTable
from tests.unit.control_rig import PASTA, Journal, Service, tcp

Act = Callable[[socket.socket], object]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control")


@pytest.fixture
def service(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(server_module, "log", Journal())
    service = Service(path)
    yield service
    service.close()


@pytest.fixture
def scripted(path: str) -> Iterator[Callable[[Act], Connection]]:
    """A connection to a server that does as it is told, then closes the connection."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    threads: list[threading.Thread] = []
    connections: list[Connection] = []

    def start(act: Act) -> Connection:
        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                act(sock)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        connections.append(Connection(path))
        return connections[-1]

    yield start
    for connection in connections:
        connection.close()
    for thread in threads:
        thread.join()
    listener.close()


def host(*ports: int) -> list[RuleTable]:
    table = RuleTable(HOST, PASTA)
    table.extend(map(tcp, ports))
    return [table]


def exactly(sock: socket.socket, size: int) -> bytes:
    return sock.recv(size, socket.MSG_WAITALL)


def test_state_and_change(path: str, service: Service) -> None:
    service.tables[0].add(tcp(80))
    connection = Connection(path)
    tables = connection.state()
    assert [[str(rule) for rule in table] for table in tables] == service.shown()
    tables[1].add(tcp(9))
    assert connection.replace(tables) == (0, [])
    connection.close()
    assert service.shown() == [["TCP [*]:80  =>  80 "], ["TCP [*]:9  =>  9 "]]


def test_ports_not_opened(path: str, service: Service) -> None:
    service.problems = ["first", "second"]
    connection = Connection(path)
    assert connection.replace(connection.state()) == (INCOMPLETE, ["first", "second"])
    connection.close()


def test_request_refused_by_ours(path: str, service: Service) -> None:
    connection = Connection(path)
    tables = connection.state()
    tables[0].receive(tcp(5, 4))
    tables[1].extend(map(tcp, range(1, 200)))
    text = "Rule has invalid port range 5-4"
    assert connection.replace(tables) == (REFUSED, [text])
    connection.close()
    assert service.replaced == 0


def test_request_accepted_by_the_original(scripted: Callable[[Act], Connection]) -> None:
    request = pack_request(host(1, 2))
    seen = []

    def act(sock: socket.socket) -> None:
        sock.sendall(pack_state(host(1)))
        seen.append(exactly(sock, len(request)))

    connection = scripted(act)
    assert [table.rules() for table in connection.state()] == [[tcp(1)]]
    assert connection.replace(host(1, 2)) == (0, [])
    assert seen == [request]


def test_request_refused_by_the_original(scripted: Callable[[Act], Connection]) -> None:
    """It closes the connection as soon as it has seen a bad rule, unread bytes or not."""

    def act(sock: socket.socket) -> None:
        sock.sendall(pack_state(host()))
        exactly(sock, 5)

    connection = scripted(act)
    connection.state()
    status, lines = connection.replace(host(1, 2))
    assert status == REFUSED
    assert lines == ["New configuration was refused, nothing has changed"]


def test_server_gone_before_the_request(scripted: Callable[[Act], Connection]) -> None:
    connection = scripted(lambda sock: sock.sendall(pack_state(host())))
    connection.state()
    assert connection._sock.recv(1, socket.MSG_PEEK) == b""
    status, _ = connection.replace(host(1))
    assert status == REFUSED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bad magic number from server", b"HTTP/1.1 400 Bad Request"),
        ("Error reading from control socket", pack_state(host(1))[:-1]),
        (
            "Unknown server protocol version 3 > 2",
            b"basil:s\0" + struct.pack("!III", 3, 128, 16),
        ),
    ],
)
def test_servers_not_understood(
    scripted: Callable[[Act], Connection], text: str, said: bytes
) -> None:
    connection = scripted(lambda sock: sock.sendall(said))
    with pytest.raises(ControlError) as caught:
        connection.state()
    assert str(caught.value) == text


def test_servers_without_patience(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing, a wait for which is over at once."""
    monkeypatch.setattr(client_module, "_TIMEVAL", struct.pack("@ll", 0, 1000))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        connection = Connection(path)
        with pytest.raises(ControlError) as caught:
            connection.state()
        assert str(caught.value) == ("Couldn't read server greeting: no answer within 30 seconds")
        with pytest.raises(ControlError) as caught:
            connection.replace(host(1))
        assert str(caught.value) == (
            "Configuration sent, outcome unknown: no answer within 30 seconds"
        )
        with pytest.raises(ControlError) as caught:
            Connection(path)
        assert str(caught.value) == f"Failed to connect to {path}: no answer within 30 seconds"
        connection.close()


def test_nobody_to_connect_to(path: str) -> None:
    for name, text in (
        (path, f"Failed to connect to {path}: No such file or directory"),
        (__file__, f"Failed to connect to {__file__}: Connection refused"),
        ("", 'Invalid socket path ""'),
        ("x" * 108, f'Invalid socket path "{"x" * 108}"'),
    ):
        with pytest.raises(ControlError) as caught:
            Connection(name)
        assert str(caught.value) == text
