"""Values of options: what is accepted, what it means, and the exact words of refusal."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.config import values
from passt.userspace.config.errors import UsageError

V6 = ipaddress.IPv6Address
V4 = ipaddress.IPv4Address


def refused(read: Callable[[str], object], text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert not caught.value.show_usage
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("10", 10), ("0x1f", 31), ("0XFF", 255), ("010", 8), ("0000", 0)],
)
def test_c_numbers(text: str, number: int) -> None:
    assert values.c_number(text) == number


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "+1", "-1", "0x", "08", "0o7", "1e3", "1_0", "٣", "1" * 65, "0x-1"]
)
def test_what_is_not_a_c_number(text: str) -> None:
    assert values.c_number(text) is None


@pytest.mark.parametrize("text", ["", "0x10", " 1", "+1", "-1", "²", "٣", "9" * 65])
def test_what_is_not_decimal(text: str) -> None:
    assert values.decimal(text) is None


@given(st.integers(0, 1 << 70))
def test_number_forms_agree(number: int) -> None:
    assert values.c_number(str(number)) == number
    assert values.c_number(hex(number)) == number
    assert values.c_number(f"0{number:o}") == number
    assert values.decimal(f"00{number}") == number


def test_mtu() -> None:
    assert [values.mtu(text) for text in ("0", "1500", "65521", "0x500")] == [0, 1500, 65521, 1280]
    assert refused(values.mtu, "65522") == "MTU 65522 too large (max 65521)"
    assert refused(values.mtu, "abc") == "Invalid MTU: abc"
    assert refused(values.mtu, "") == "Invalid MTU: "


def test_log_size() -> None:
    assert values.log_size("40960") == 40960
    assert refused(values.log_size, "40959") == "Invalid --log-size: 40959"
    assert refused(values.log_size, "1M") == "Invalid --log-size: 1M"
    assert refused(values.log_size, str(1 << 63)) == f"Invalid --log-size: {1 << 63}"


def test_max_memory() -> None:
    assert values.max_memory("64M") == 64 << 20
    assert values.max_memory("1g") == 1 << 30
    assert values.max_memory("0x4000000") == 64 << 20
    assert values.max_memory("102400k") == 100 << 20
    assert refused(values.max_memory, "47M") == "--max-memory 47M too small (min 50331648)"
    assert refused(values.max_memory, "0") == "--max-memory 0 too small (min 50331648)"
    for text in ("", "M", "1.5G", "-1", "1GB", "1 G", "9999999999G", str(1 << 63)):
        assert refused(values.max_memory, text) == f"Invalid --max-memory: {text}"


def test_pcap_size() -> None:
    assert values.pcap_size("0") == 0
    assert values.pcap_size("4096") == values.pcap_size("4K") == 4096
    assert refused(values.pcap_size, "4095") == "--pcap-size 4095 too small (min 4096)"
    assert refused(values.pcap_size, "all") == "Invalid --pcap-size: all"


def test_stats_interval() -> None:
    assert values.stats_interval("0") == 0
    assert values.stats_interval("0x10") == 16
    assert refused(values.stats_interval, "abc") == "Invalid --stats: abc"


def test_paths() -> None:
    assert values.path("PID file", "/run/x") == "/run/x"
    assert refused(lambda text: values.path("PID file", text), "") == "Invalid PID file: "
    assert values.netns("name") == "/run/netns/name"
    assert values.netns("./name") == "./name"
    assert refused(values.netns, "") == "Invalid --netns: "


def test_hostname_length_is_in_bytes() -> None:
    assert values.hostname("a" * 253) == "a" * 253
    assert values.hostname("") == ""
    assert refused(values.hostname, "a" * 254) == f"Invalid hostname: {'a' * 254}"
    assert refused(values.hostname, "é" * 127).startswith("Invalid hostname: ")


def test_interface_names() -> None:
    assert values.ifname("a" * 15) == "a" * 15
    for text in ("", "a" * 16, "é" * 8, ".", "..", "a/b", "a b", "a:b", "a\n"):
        assert refused(values.ifname, text) == f"Invalid interface name: {text}"
    assert values.existing_ifname("lo") == "lo"
    for text in ("", "no-such-if", "a" * 16, "a" * 200):
        expected = f"Invalid interface name {text}: No such device"
        assert refused(values.existing_ifname, text) == expected


def test_mac() -> None:
    assert values.mac("9a:55:9A:55:9a:0f").hex() == "9a559a559a0f"
    for text in (
        "",
        "9a:55:9a:55:9a",
        "9a:55:9a:55:9a:5",
        "9a:55:9a:55:9a:555",
        "9a:55:9a:55:9a:55:",
        "9a-55-9a-55-9a-55",
        "9a:55:9a:55:9a:5g",
        "9a:55:9a:55:9a: 5",
        "9a:55:9a:55:9a:٣٣",
    ):
        assert refused(values.mac, text) == f"Invalid MAC address: {text}"


@pytest.mark.parametrize(
    ("text", "packed", "length"),
    [
        ("192.0.2.1", V4("192.0.2.1").packed, None),
        ("[192.0.2.1]/24", V4("192.0.2.1").packed, 24),
        ("192.0.2.1/0", V4("192.0.2.1").packed, 0),
        ("192.0.2.1/032", V4("192.0.2.1").packed, 32),
        ("2001:db8::1", V6("2001:db8::1").packed, None),
        ("[2001:db8::1]/128", V6("2001:db8::1").packed, 128),
        ("fe80::1/64", V6("fe80::1").packed, 64),
        ("::ffff:192.0.2.1", V4("192.0.2.1").packed, None),
        ("::ffff:192.0.2.1/120", V4("192.0.2.1").packed, 24),
    ],
)
def test_guest_address(text: str, packed: bytes, length: int | None) -> None:
    assert values.guest_address(text) == (packed, length)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/24",
        "x",
        "127.0.0.1",
        "127.9.9.9/8",
        "0.0.0.0",
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "192.0.2.1/",
        "192.0.2.1/x",
        "192.0.2.1/+24",
        "192.0.2.1/0x18",
        "192.0.2",
        "192.0.2.01",
        "[192.0.2.1",
        "[2001:db8::1/64]",
        "2001:db8::1%eth0",
        "\udcff",
    ],
)
def test_guest_address_refused(text: str) -> None:
    assert refused(values.guest_address, text) == f"Invalid guest address: {text}"


@pytest.mark.parametrize(
    "text",
    ["192.0.2.1/33", "2001:db8::1/129", "::ffff:192.0.2.1/129", "::ffff:192.0.2.1/95"],
)
def test_guest_prefix_refused(text: str) -> None:
    assert refused(values.guest_address, text) == f"Invalid prefix length: {text}"


@pytest.mark.parametrize("length", range(33))
def test_netmask_forms_agree(length: int) -> None:
    dotted = str(ipaddress.ip_network((0, length)).netmask)
    assert values.netmask(str(length)) == length
    assert values.netmask(hex(length)) == length
    assert values.netmask(dotted) == length


@pytest.mark.parametrize(
    "text", ["", "33", "255.0.255.0", "0.255.255.255", "255.255.255", "::", "x"]
)
def test_netmask_refused(text: str) -> None:
    assert refused(values.netmask, text) == f"Invalid prefix length: {text}"


@given(st.ip_addresses(v=4))
def test_netmask_accepts_contiguous_masks_only(mask: ipaddress.IPv4Address) -> None:
    bits = f"{int(mask):032b}"
    if "01" in bits:
        refused(values.netmask, str(mask))
    else:
        assert values.netmask(str(mask)) == bits.count("1")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("1.0.0.1", 8),
        ("10.0.0.1", 8),
        ("126.0.0.1", 8),
        ("128.0.0.1", 16),
        ("191.255.0.1", 16),
        ("192.0.2.1", 24),
        ("223.255.255.1", 24),
        ("240.0.0.1", 32),
    ],
)
def test_class_prefix(text: str, length: int) -> None:
    assert values.class_prefix_len(V4(text).packed) == length


def test_gateway() -> None:
    assert values.gateway("192.0.2.1") == V4("192.0.2.1").packed
    assert values.gateway("::ffff:192.0.2.1") == V4("192.0.2.1").packed
    assert values.gateway("fe80::1") == V6("fe80::1").packed
    for text in (
        *("", "x", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "192.0.2.1/24"),
        *("[2001:db8::1]", "::ffff:127.0.0.1", "::ffff:0.0.0.0"),
    ):
        assert refused(values.gateway, text) == f"Invalid gateway address: {text}"


def test_outbound() -> None:
    assert values.outbound("127.0.0.1") == V4("127.0.0.1").packed
    assert values.outbound("2001:db8::1") == V6("2001:db8::1").packed
    for text in (
        *("", "x", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"),
        *("::ffff:192.0.2.1", "::192.0.2.1"),
    ):
        expected = f"Invalid or redundant outbound address: {text}"
        assert refused(values.outbound, text) == expected


def test_remapped() -> None:
    assert values.remapped("169.254.1.2") == V4("169.254.1.2").packed
    assert values.remapped("::ffff:192.0.2.1") == V4("192.0.2.1").packed
    assert values.remapped("fe80::5") == V6("fe80::5").packed
    for text in (
        "",
        "x",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
    ):
        assert refused(values.remapped, text) == f"Invalid address to remap to host: {text}"


@given(st.ip_addresses())
def test_addresses_round_trip(addr: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = values.address(str(addr))
    assert packed == addr.packed
    assert ipaddress.ip_address(values.address_text(packed)) == addr


def test_runas_numbers() -> None:
    assert values.runas("1000") == (1000, 1000)
    assert values.runas("0") == (0, 0)
    assert values.runas("0x10:010") == (16, 8)
    assert values.runas("4294967294") == (4294967294, 4294967294)


def test_runas_names() -> None:
    entry = next(entry for entry in pwd.getpwall() if entry.pw_uid != 0)
    assert values.runas(entry.pw_name) == (entry.pw_uid, entry.pw_gid)
    assert values.runas(f"{entry.pw_name}:7") == (entry.pw_uid, 7)
    assert values.runas(f"{entry.pw_name}:root") == (entry.pw_uid, 0)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "1:",
            ":1",
            "-1",
            "0x",
            "root",
            "root:1000",
            "1:-1",
            "4294967295",
            "1:4294967295",
        ),
        *("4294967296", "no such user", "1:no such group", "1:2:3", "\udcff", "1:\udcff"),
    ],
)
def test_runas_refused(text: str) -> None:
    assert refused(values.runas, text) == f"Invalid --runas option: {text}"


#: Any word that execve(2) can pass.
WORDS = st.binary(max_size=40).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)

READERS: list[Callable[[str], object]] = [
    values.mtu,
    values.log_size,
    values.max_memory,
    values.pcap_size,
    values.stats_interval,
    values.netns,
    values.hostname,
    values.ifname,
    values.existing_ifname,
    values.mac,
    values.guest_address,
    values.netmask,
    values.gateway,
    values.outbound,
    values.remapped,
    values.resolver,
    values.dns_host,
    values.dns_forward,
    values.runas,
]


@given(
    st.sampled_from(READERS), st.one_of(WORDS, st.text("0123456789abcdefx:./[]% -+", max_size=40))
)
def test_readers_raise_nothing_else(read: Callable[[str], object], text: str) -> None:
    try:
        result = read(text)
    except UsageError as error:
        assert text in error.message
    else:
        assert result is not None
