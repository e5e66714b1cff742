"""Why frames from the guest were not processed: named reasons, counted.

Hostile input is counted and dropped, never reported frame by frame.  A reason is a small
integer, so that a parser can return it negated in place of a protocol or port number and
the receive path can count it with one list operation::

    protocol, l4, l4_end, ttl, src, dst = parse(buf, off, end)
    if protocol < 0:
        counts[-protocol] += 1

Reason 0 does not exist: its negation could not be told from a valid field.
"""

from __future__ import annotations

FRAME_SHORT = 1
ETHERTYPE = 2
FAMILY_DISABLED = 3
IP4_SHORT = 4
IP4_VERSION = 5
IP4_HEADER_LEN = 6
IP4_TOTAL_LEN = 7
IP4_FRAGMENT = 8
IP4_LOOPBACK = 9
IP4_PROTOCOL = 10
IP6_SHORT = 11
IP6_VERSION = 12
IP6_PAYLOAD_LEN = 13
IP6_LOOPBACK = 14
IP6_V4_MAPPED = 15
IP6_EXT_BOUNDS = 16
IP6_EXT_LIMIT = 17
IP6_FRAGMENT = 18
IP6_ESP = 19
IP6_NO_NEXT = 20
IP6_PROTOCOL = 21
TCP_SHORT = 22
TCP_HEADER_LEN = 23
UDP_SHORT = 24
ICMP_SHORT = 25
ICMP_TYPE = 26
ARP_FORMAT = 27
NDP_SHORT = 28
DHCP_FORMAT = 29
DHCPV6_FORMAT = 30
SERVICE_RATE = 31
IP4_SOURCE = 32
IP6_SOURCE = 33
PROTOCOL_DISABLED = 34
NO_FLOW = 35
TCP_STRAY_RESET = 36
TCP_STRAY_GROUP = 37
MEMBERSHIP_FORMAT = 38
MEMBERSHIP_LIMIT = 39
UDP_TRAIN = 40

#: Text of each reason, indexed by its number.
NAMES = (
    "",
    "frame shorter than an Ethernet header",
    "EtherType not handled",
    "IP version disabled",
    "IPv4 header truncated",
    "IPv4 version is not 4",
    "IPv4 header length",
    "IPv4 total length",
    "IPv4 fragment",
    "IPv4 loopback address",
    "IPv4 protocol not handled",
    "IPv6 header truncated",
    "IPv6 version is not 6",
    "IPv6 payload length",
    "IPv6 loopback address",
    "IPv6 address is v4-mapped",
    "IPv6 extension header truncated",
    "IPv6 extension headers too many or too long",
    "IPv6 fragment",
    "IPv6 encapsulating security payload",
    "IPv6 no next header",
    "IPv6 next header not handled",
    "TCP header truncated",
    "TCP data offset",
    "UDP header truncated",
    "ICMP header truncated",
    "ICMP type not handled",
    "ARP truncated or not Ethernet/IPv4",
    "NDP message truncated",
    "DHCP message malformed",
    "DHCPv6 message malformed",
    "configuration asked for too often",
    "IPv4 source is not unicast",
    "IPv6 source is not unicast",
    "protocol disabled",
    "no flow could be made",
    "TCP reset without a connection",
    "TCP segment to a group, or from nobody",
    "IGMP or MLD message malformed, or not of this link",
    "group membership reported too often, or of too many groups",
    "UDP superframe of too many datagrams",
)

#: Frames dropped so far, indexed by reason.
counts = [0] * len(NAMES)


def bump(reason: int) -> None:
    """Count one frame dropped for ``reason``."""
    counts[reason] += 1


def dump() -> str:
    """The reasons that occurred, one ``count text`` line each, for debug output."""
    return "\n".join(
        f"{count:10} {name}" for count, name in zip(counts, NAMES, strict=True) if count
    )
