"""Messages composed with pyroute2, against bytes written down by hand."""

from __future__ import annotations

import struct
import subprocess
import sys

from passt.kernel.netlink import messages
from passt.kernel.netlink.attributes import parse
from tests.unit.netlink_bytes import attr, pack_ip, u32


def test_link_flags_alone_leave_the_rest() -> None:
    assert messages.link(5, 0x81, 0x81) == struct.pack("=BxHiII", 0, 0, 5, 0x81, 0x81)


def test_link_mtu_and_address() -> None:
    body = messages.link(5, mtu=65520, mac=b"\x9a\x55\x9a\x55\x9a\x55")
    assert struct.unpack_from("=BxHiII", body) == (0, 0, 5, 0, 0)
    assert parse(body, 16) == {4: u32(4, 65520)[4:], 1: b"\x9a\x55\x9a\x55\x9a\x55"}


def test_ipv4_address() -> None:
    body = messages.address(2, 7, pack_ip("192.0.2.9"), 25)
    packed = pack_ip("192.0.2.9")
    assert body == struct.pack("=BBBBI", 2, 25, 0, 0, 7) + attr(2, packed) + attr(1, packed) + u32(
        8, 0
    )


def test_ipv6_address_keeps_its_prefix_and_skips_duplicate_detection() -> None:
    body = messages.address(10, 7, pack_ip("2001:db8::9"), 128)
    assert struct.unpack_from("=BBBBI", body) == (10, 128, 2, 0, 7)
    assert parse(body, 8)[8] == u32(8, 2)[4:]
    assert parse(body, 8)[2] == pack_ip("2001:db8::9")


def test_default_route() -> None:
    body = messages.default_route(2, 7, pack_ip("192.0.2.1"), False)
    assert struct.unpack_from("=BBBBBBBBI", body) == (2, 0, 0, 0, 254, 3, 0, 1, 0)
    assert parse(body, 12) == {4: u32(4, 7)[4:], 5: pack_ip("192.0.2.1")}


def test_default_route_on_link() -> None:
    assert messages.default_route(10, 7, pack_ip("2001:db8::1"), True)[8:12] == b"\x04\0\0\0"


def test_default_route_without_gateway_is_of_link_scope_for_ipv4() -> None:
    assert messages.default_route(2, 7, None, False)[6] == 253
    assert messages.default_route(10, 7, None, False)[6] == 0
    assert parse(messages.default_route(2, 7, None, False), 12) == {4: u32(4, 7)[4:]}


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_itself_is_neither_run_nor_spoilt() -> None:
    out = run(
        "import sys\n"
        "from passt.kernel.netlink import messages\n"
        "assert 'pyroute2.netlink' not in sys.modules\n"
        "messages.load()\n"
        "print('pyroute2.netlink' in sys.modules, 'pyroute2.iproute' in sys.modules)\n"
        "import pyroute2\n"
        "print(pyroute2.IPRoute.__name__, 'pyroute2.iproute' in sys.modules)\n"
    )
    assert out.split() == ["True", "False", "IPRoute", "True"]


def test_plain_import_if_the_stand_in_does_not_do() -> None:
    out = run(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "from passt.kernel.netlink import messages\n"
        "real = PathFinder.find_spec\n"
        "def nowhere(name, *rest):\n"
        "    spec = real(name, *rest)\n"
        "    if name == 'pyroute2' and sys._getframe(1).f_code.co_name.startswith('_load'):\n"
        "        spec.submodule_search_locations = ['/nonexistent']\n"
        "    return spec\n"
        "PathFinder.find_spec = nowhere\n"
        "print(messages.link(5, 1, 1).hex(), 'pyroute2.iproute' in sys.modules)\n"
    )
    assert out.split() == [struct.pack("=BxHiII", 0, 0, 5, 1, 1).hex(), "True"]


def test_loading_in_steps_ends_loaded() -> None:
    out = run(
        "import sys\n"
        "from passt.kernel.netlink import messages\n"
        "steps = messages.load_in_steps()\n"
        "next(steps)\n"
        "early = 'pyroute2.netlink' in sys.modules\n"
        "rest = len(list(steps))\n"
        "print(early, rest > 0, 'pyroute2.netlink' in sys.modules)\n"
    )
    assert out.split() == ["False", "True", "True"]
