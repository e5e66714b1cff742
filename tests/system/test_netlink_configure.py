"""Configuring the tap: single addresses, default routes, local mode, what a namespace refuses."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from passt.kernel.netlink.worker import FamilyPlan, WorkerError
from tests.system.netlink_lab import Lab

pytestmark = pytest.mark.system

MAC = bytes.fromhex("025500aa0001")


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def plan(address: str | None, length: int, gateway: str | None, local: bool = False) -> FamilyPlan:
    return FamilyPlan(address and ip(address), length, gateway and ip(gateway), local=local)


def test_loopback_comes_up_and_the_tap_stays_down(lab: Lab) -> None:
    tap = lab.enter("lan0")
    lab.worker.loopback_up()
    assert "UP" in lab.guest.ip("link show lo")[0]["flags"]
    (link,) = lab.guest.ip("link show lan0")
    assert "UP" not in link["flags"]
    assert (link["ifindex"], link["address"]) == (tap.ifindex, tap.mac.hex(":"))


def test_loopback_without_any_tap(lab: Lab) -> None:
    fd = lab.guest.fd()
    assert lab.worker.enter(None, fd, None) is None
    lab.worker.loopback_up()
    (link,) = lab.guest.ip("link show")
    assert "UP" in link["flags"]


def test_hardware_address(lab: Lab) -> None:
    lab.enter()
    assert lab.worker.set_mac(MAC) == MAC
    assert lab.guest.ip("link show tap0")[0]["address"] == MAC.hex(":")
    with pytest.raises(WorkerError) as caught:
        lab.worker.set_mac(bytes.fromhex("01005e000001"))
    assert str(caught.value).startswith(
        "Couldn't set MAC address in namespace: Cannot assign requested address"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mtu", "then"), [(65520, 65520), (1280, 1280), (0, 1500), (20, 1500)])
def test_mtu_and_up_without_any_address(lab: Lab, mtu: int, then: int) -> None:
    done = lab.configure(mtu=mtu)
    (link,) = lab.guest.ip("link show tap0")
    assert link["mtu"] == then
    assert "UP" in link["flags"]
    assert (done.ipv4, done.ipv6) == (False, False)
    refused = [("debug", "Couldn't set MTU in namespace: Invalid argument")]
    assert [(a, b.split(" (")[0]) for a, b in done.notes] == (refused if mtu == 20 else [])


def test_single_addresses_and_default_routes(lab: Lab) -> None:
    done = lab.configure(
        plan("192.0.2.9", 25, "192.0.2.1"), plan("2001:db8::9", 56, "2001:db8:0:ff::1")
    )
    assert (done.ipv4, done.ipv6, done.notes) == (True, True, [])
    found = lab.guest.addresses("tap0")
    assert list(found) == ["192.0.2.9/25", "2001:db8::9/56"]
    assert "broadcast" not in found["192.0.2.9/25"]
    assert found["2001:db8::9/56"]["nodad"] is True
    assert [
        (r["dst"], r.get("gateway"), r.get("protocol", "boot")) for r in lab.guest.routes()
    ] == [
        ("default", "192.0.2.1", "boot"),
        ("192.0.2.0/25", None, "kernel"),
    ]
    six = {r["dst"]: r for r in lab.guest.routes(6)}
    assert set(six) == {"2001:db8::/56", "default"}
    assert six["default"]["gateway"] == "2001:db8:0:ff::1" and six["default"]["flags"] == []
    # The namespace reaches its own address.
    with lab.guest.inside(), socket.socket() as listener, socket.socket() as client:
        listener.bind(("192.0.2.9", 0))
        listener.listen()
        client.connect(listener.getsockname())


def test_link_local_gateway(lab: Lab) -> None:
    lab.configure(None, plan("2001:db8::1", 128, "fe80::1"))
    assert ("default", "fe80::1") in [(r["dst"], r.get("gateway")) for r in lab.guest.routes(6)]


def test_gateway_off_the_subnet(lab: Lab) -> None:
    with pytest.raises(WorkerError) as caught:
        lab.configure(plan("192.0.2.9", 24, "10.0.0.1"))
    assert str(caught.value).startswith(
        "Couldn't set IPv4 route(s) in guest: Network is unreachable"
    )
    with pytest.raises(WorkerError) as caught:
        lab.configure(None, plan("2001:db8::9", 64, "2001:db8:1::1"))
    assert str(caught.value).startswith("Couldn't set IPv6 route(s) in guest: No route to host")


def test_address_of_one_version_leaves_the_other_copied(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "ip addr add 2001:db8::2/64 dev eth0 noprefixroute nodad\n"
        "ip addr add 2001:db8::3/64 dev eth0 noprefixroute nodad\n"
        "ip -6 route add 2001:db8::1 dev eth0; ip -6 route add default via 2001:db8::1\n"
    )
    info = lab.template(has_address4=True)
    assert info.ipv4 is not None and info.ipv6 is not None
    four = FamilyPlan(ip("192.0.2.77"), 24, ip("192.0.2.99"))
    six = FamilyPlan(
        info.ipv6.address,
        info.ipv6.prefix_len,
        info.ipv6.gateway,
        copy_addresses=True,
        copy_routes=True,
    )
    lab.configure(four, six)
    assert set(lab.guest.addresses("tap0")) == {
        "192.0.2.77/24",
        "2001:db8::2/64",
        "2001:db8::3/64",
    }
    assert lab.guest.routes()[0]["gateway"] == "192.0.2.99"
    assert {(r["dst"], r.get("gateway")) for r in lab.guest.routes(6)} == {
        ("2001:db8::1", None),
        ("default", "2001:db8::1"),
    }


def test_address_elsewhere_with_the_hosts_routes(lab: Lab) -> None:
    lab.host.run("ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")
    info = lab.template(ipv6=False, has_address4=True)
    assert info.ipv4 is not None
    lab.configure(FamilyPlan(ip("203.0.113.7"), 24, info.ipv4.gateway, copy_routes=True))
    assert [(r["dst"], r.get("gateway"), r.get("prefsrc")) for r in lab.guest.routes()] == [
        ("default", "192.0.2.1", None),
        ("192.0.2.0/24", None, None),
        ("203.0.113.0/24", None, "203.0.113.7"),
    ]


def test_link_scope_address_is_given_though_not_copied(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0 scope link; ip route add default via 192.0.2.1\n"
    )
    lab.copy()
    assert list(lab.guest.addresses("tap0")) == ["192.0.2.2/24"]
    assert lab.guest.routes()[0]["gateway"] == "192.0.2.1"


def test_template_default_without_gateway_is_kept_without_copying(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default dev eth0\n"
        "ip addr add 2001:db8::2/64 dev eth0 nodad; ip -6 route add default dev eth0\n"
    )
    lab.template()
    lab.configure(
        FamilyPlan(ip("192.0.2.2"), 24, None), FamilyPlan(ip("2001:db8::2"), 64, None, local=False)
    )
    assert [r["dst"] for r in lab.guest.routes()] == ["default", "192.0.2.0/24"]
    assert [r["dst"] for r in lab.guest.routes(6)] == ["2001:db8::/64", "default"]


def test_no_default_on_the_host_means_none_without_copying(lab: Lab) -> None:
    lab.host.run("ip addr add 192.0.2.2/24 dev eth0")
    lab.template()
    lab.configure(FamilyPlan(ip("192.0.2.2"), 24, None))
    assert [r["dst"] for r in lab.guest.routes()] == ["192.0.2.0/24"]


def test_local_mode(lab: Lab) -> None:
    done = lab.configure(
        plan("169.254.2.1", 16, "169.254.2.2", local=True), plan(None, 64, "fe80::1", local=True)
    )
    assert (done.ipv4, done.ipv6, done.notes) == (True, True, [])
    # Shown as of link scope or global, it is the only one.
    assert list(lab.guest.addresses("tap0")) == ["169.254.2.1/16"]
    assert lab.guest.routes()[0]["gateway"] == "169.254.2.2"
    assert [(r["dst"], r["gateway"]) for r in lab.guest.routes(6)] == [("default", "fe80::1")]
    assert done.link_local is not None


def test_local_mode_with_an_address_elsewhere(lab: Lab) -> None:
    lab.configure(
        plan("192.0.2.1", 24, "169.254.2.2", local=True),
        plan("2001:db8::1", 64, "2001:db8:1::1", local=True),
    )
    default = lab.guest.routes()[0]
    assert (default["gateway"], default["flags"]) == ("169.254.2.2", ["onlink"])
    six = [r for r in lab.guest.routes(6) if r["dst"] == "default"]
    assert six[0]["gateway"] == "2001:db8:1::1" and six[0]["flags"] == ["onlink"]


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("knob", ["default", "all"])
def test_namespace_without_ipv6(lab: Lab, local: bool, knob: str) -> None:
    lab.guest.run(f"sysctl -qw net.ipv6.conf.{knob}.disable_ipv6=1")
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "ip addr add 2001:db8::2/64 dev eth0 nodad; ip route add default via 2001:db8::1\n"
    )
    if local:
        done = lab.configure(
            plan("169.254.2.1", 16, "169.254.2.2", local=True),
            plan(None, 64, "fe80::1", local=True),
        )
    else:
        done = lab.copy()
    assert (done.ipv4, done.ipv6, done.link_local) == (True, False, None)
    level = "info" if local else "warning"
    assert done.notes == [(level, "IPv6 not supported, disabling")]
    assert lab.guest.routes()[0]["dst"] == "default"


def test_mtu_too_small_for_ipv6(lab: Lab) -> None:
    with pytest.raises(WorkerError) as caught:
        lab.configure(None, plan("2001:db8::1", 64, None), mtu=1000)
    assert str(caught.value).startswith(
        "Couldn't set IPv6 address(es) in namespace: Invalid argument"
    )


def test_namespace_that_makes_no_link_local_addresses(lab: Lab) -> None:
    lab.guest.run("sysctl -qw net.ipv6.conf.default.addr_gen_mode=1")
    done = lab.configure(None, plan("2001:db8::9", 64, "2001:db8::1"))
    assert (done.ipv6, done.link_local) == (True, None)
    assert list(lab.guest.addresses("tap0")) == ["2001:db8::9/64"]


def test_ipv4_only_leaves_ipv6_to_the_kernel(lab: Lab) -> None:
    done = lab.configure(plan("192.0.2.9", 24, "192.0.2.1"))
    assert (done.ipv4, done.ipv6, done.link_local) == (True, False, None)
    assert "nodad" not in lab.guest.link_local("tap0")[0]


def test_what_is_there_already_does_no_harm(lab: Lab) -> None:
    plans = (plan("192.0.2.9", 24, "192.0.2.1"), plan("2001:db8::9", 64, "2001:db8::1"))
    first = lab.configure(*plans)
    before = lab.guest.run("ip addr; ip route; ip -6 route")
    second = lab.configure(*plans)
    assert lab.guest.run("ip addr; ip route; ip -6 route") == before
    assert first.link_local == second.link_local is not None
