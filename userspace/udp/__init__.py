"""UDP between the guest, the host's sockets and those of the namespace."""

from __future__ import annotations

from passt.userspace.udp.splice import Splice as Udp

__all__ = ["Udp"]
