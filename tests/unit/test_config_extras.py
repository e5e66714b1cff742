"""Further options for DHCP, DHCPv6 and Router Advertisements, as text and as bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.config import extras
from passt.userspace.config.errors import UsageError
from passt.userspace.config.extras import DHCP, DHCPV6, RA, Protocol
from passt.userspace.config.parse import parse

PROTOCOLS = st.sampled_from([DHCP, DHCPV6, RA])


@pytest.mark.parametrize(
    ("protocol", "text", "code", "value"),
    [
        (DHCP, "42:192.0.2.1,192.0.2.2", 42, "c0000201c0000202"),
        (DHCP, "0x2a:192.0.2.1", 42, "c0000201"),
        (DHCP, "66:boot.example", 66, b"boot.example".hex()),
        (DHCP, "51:3600", 51, "00000e10"),
        (DHCP, "26:1400", 26, "0578"),
        (DHCP, "23:64", 23, "40"),
        (DHCP, "119:a.example,b.a.example", 119, "0161076578616d706c65000162c000"),
        (DHCP, "224:hex:0a:0B0c", 224, "0a0b0c"),
        (DHCP, "224:u16:0x100", 224, "0100"),
        (DHCP, "224:str:ip:x", 224, b"ip:x".hex()),
        (DHCP, "66:a:b", 66, b"a:b".hex()),
        (DHCP, "3:hex:01", 3, "01"),
        (DHCP, "3:", 3, None),
        (DHCP, "254:", 254, None),
        (DHCPV6, "31:2001:db8::1,::1", 31, "20010db8" + "0" * 23 + "1" + "0" * 31 + "1"),
        (DHCPV6, "7:255", 7, "ff"),
        (DHCPV6, "32:600", 32, "00000258"),
        (DHCPV6, "24:a,b.c", 24, "0161000162016300"),
        (DHCPV6, "65535:ip:::", 65535, "0" * 32),
        (RA, "5:1400", 5, "000000000578"),
        (RA, "25:2001:db8::1", 25, "0000ffffffff20010db8" + "0" * 23 + "1"),
        (RA, "31:a", 31, "0000ffffffff016100"),
        (RA, "37:https://x", 37, b"https://x".hex()),
        (RA, "38:hex:0000", 38, "0000"),
    ],
)
def test_values(protocol: Protocol, text: str, code: int, value: str | None) -> None:
    assert extras.read(protocol, text) == (code, None if value is None else bytes.fromhex(value))


@pytest.mark.parametrize(
    ("protocol", "text", "why"),
    [
        (DHCP, "", "not CODE:VALUE"),
        (DHCP, "3", "not CODE:VALUE"),
        (DHCP, "x:1", "not CODE:VALUE"),
        (DHCP, "-1:1", "not CODE:VALUE"),
        (DHCP, "0:1", "codes are 1 to 254"),
        (DHCP, "255:1", "codes are 1 to 254"),
        (DHCP, "53:1", "code 53 cannot be set"),
        (DHCP, "53:", "code 53 cannot be set"),
        (DHCP, "224:1", "needs a type, one of ip, name, str, u8, u16, u32, hex"),
        (DHCP, "3:2001:db8::1", "not a value of type ip"),
        (DHCP, "3:192.0.2.1,", "not a value of type ip"),
        (DHCP, "3:ip:", "not a value of type ip"),
        (DHCP, "224:str:", "not a value of type str"),
        (DHCP, "23:256", "not a value of type u8"),
        (DHCP, "51:4294967296", "not a value of type u32"),
        (DHCP, "51:-1", "not a value of type u32"),
        (DHCP, "224:hex:0", "not a value of type hex"),
        (DHCP, "224:hex:gg", "not a value of type hex"),
        (DHCP, "119:a..b", "not a value of type name"),
        (DHCP, f"224:str:{'x' * 256}", "longer than 255 bytes"),
        (DHCP, f"119:{'.'.join(['a' * 60] * 4)},{'b' * 60}", "longer than 255 bytes"),
        (DHCPV6, "3:1", "code 3 cannot be set"),
        (DHCPV6, "65536:1", "codes are 1 to 65535"),
        (DHCPV6, "23:192.0.2.1", "not a value of type ip"),
        (DHCPV6, f"59:{'x' * 1001}", "longer than 1000 bytes"),
        (RA, "3:hex:00", "code 3 cannot be set"),
        (RA, "256:hex:00", "codes are 1 to 255"),
        (RA, f"37:{'x' * 2039}", "longer than 2038 bytes"),
    ],
)
def test_refusals(protocol: Protocol, text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        extras.read(protocol, text)
    assert caught.value.message == f"Invalid {protocol.option} {text}: {why}"


def test_longest_values() -> None:
    assert extras.read(DHCP, f"224:str:{'x' * 255}")[1] == b"x" * 255
    name = ".".join(["a" * 60] * 4)
    # Too long as it stands, but not compressed.
    assert extras.read(DHCP, f"119:{name},{name}")[1] is not None


def test_options_accumulate_and_the_last_of_a_code_counts() -> None:
    words = ["--dhcp-opt", "42:192.0.2.1", "--dhcp-opt=66:x", "--dhcp-opt", "42:192.0.2.2"]
    words += ["--dhcpv6-opt", "7:1", "--ra-opt", "37:x"]
    options = parse("pasta", [*words, "true"])
    assert options.dhcp_opts == {42: bytes((192, 0, 2, 2)), 66: b"x"}
    assert options.dhcpv6_opts == {7: b"\1"}
    assert options.ra_opts == {37: b"x"}


@pytest.mark.parametrize(
    ("option", "other"),
    [
        ("--dhcp-opt", "--no-dhcp"),
        ("--dhcpv6-opt", "--no-dhcpv6"),
        ("--ra-opt", "--no-ra"),
        ("--ra-opt", "--no-ndp"),
        ("--ra-opt", "--no-icmp"),
        ("--ra-opt", "--config-net"),
    ],
)
def test_options_of_what_is_off_are_refused(option: str, other: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse("pasta", [option, "200:hex:00", other, "true"])
    assert caught.value.message == f"{option} is incompatible with {other}"
    with pytest.raises(UsageError, match="--splice-only is incompatible with"):
        parse("pasta", ["--splice-only", option, "200:hex:00", "true"])


def test_advertisements_must_fit_a_packet() -> None:
    words = ["--ra-opt", f"37:{'x' * 300}", "--ra-opt"]
    parse("pasta", [*words, f"200:str:{'y' * 190}", "true"])
    with pytest.raises(UsageError, match="longer than 512 bytes"):
        parse("pasta", [*words, f"200:str:{'y' * 210}", "true"])


@given(
    PROTOCOLS,
    st.integers(0, 300),
    st.sampled_from(["", "ip:", "name:", "str:", "u8:", "u16:", "u32:", "hex:"]),
    st.one_of(
        st.text("0123456789abcdef.:,x", max_size=60),
        st.binary(max_size=60).filter(lambda raw: b"\0" not in raw).map(os.fsdecode),
    ),
)
def test_any_text(protocol: Protocol, code: int, kind: str, text: str) -> None:
    try:
        found, value = extras.read(protocol, f"{code}:{kind}{text}")
    except UsageError as error:
        assert error.message.startswith("Invalid ")
        assert "\n" not in error.message.replace(text, "")
    else:
        assert found == code and code not in protocol.reserved
        assert value is None or 0 < len(value) <= protocol.longest
