"""ICMP and ICMPv6 echo between the guest and ping sockets of the host, and their errors."""

from __future__ import annotations

from passt.userspace.icmp.translator import Icmp

__all__ = ["Icmp"]
