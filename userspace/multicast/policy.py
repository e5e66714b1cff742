"""Groups for which the host is told what the guest does, and ports that belong to groups.

**Which groups are joined.**  Most.  Not joined are those that belong to the link itself, to
routing and to address configuration, as the guest's link ends at us: in the blocks of groups
that never leave a link (224.0.0.0/24, RFC 5771; ff02::/16) the numbers up to 31, among them all
hosts, all routers, and the routing protocols, and for IPv6 the groups by which addresses are
resolved and DHCPv6 servers found.  SSDP has one of these numbers, and is joined.  Groups that
never leave a host, and reserved scopes, mean nothing on any link (RFC 4291, 2.7).

**Ports.**  A report of membership names a group, and a program that listens to it has chosen a
port, which nobody on the link sees.  For some groups the port is part of the protocol.

Source: IANA, IPv4 and IPv6 Multicast Address Space Registries.
"""

from __future__ import annotations

#: The last number, in a block of groups of one link, of those that belong to the link itself.
_LAST_OF_LINK = 31
_SSDP6 = 0xC
#: Agents and servers of DHCPv6: ff02::1:2.
_DHCPV6 = 0x10002
#: Solicited-node groups: ff02::1:ff00:0/104.
_SOLICITED_NODE = 0x1FF

_MDNS, _LLMNR, _SSDP, _WS_DISCOVERY, _COAP, _COAPS = 5353, 5355, 1900, 3702, 5683, 5684

_PORTS4 = {
    bytes((224, 0, 0, 251)): (_MDNS,),
    bytes((224, 0, 0, 252)): (_LLMNR,),
    bytes((239, 255, 255, 250)): (_SSDP, _WS_DISCOVERY),
    bytes((224, 0, 1, 187)): (_COAP, _COAPS),
}
#: By the number of the group, whatever its scope.
_PORTS6 = {
    0xFB: (_MDNS,),
    0x10003: (_LLMNR,),
    _SSDP6: (_SSDP, _WS_DISCOVERY),
    0xFD: (_COAP, _COAPS),
}


def leaves_host(group: bytes) -> bool:
    """Whether what is sent to ``group`` belongs on a link at all."""
    # Scopes 0 and 15 are reserved, 1 is the host's own.
    return len(group) == 4 or group[1] & 0xF not in (0, 1, 15)


def is_joined(group: bytes) -> bool:
    """Whether the host joins ``group`` on behalf of the guest."""
    if len(group) == 4:
        return group[:3] != b"\xe0\0\0" or group[3] > _LAST_OF_LINK
    if not leaves_host(group):
        return False
    if group[1] != 2:
        return True
    number = int.from_bytes(group[2:], "big")
    if number == _SSDP6:
        return True
    return number > _LAST_OF_LINK and number != _DHCPV6 and number >> 24 != _SOLICITED_NODE


def known_ports(group: bytes) -> tuple[int, ...]:
    """The ports that belong to ``group``; none for most."""
    if len(group) == 4:
        return _PORTS4.get(group, ())
    return _PORTS6.get(int.from_bytes(group[2:], "big"), ())
