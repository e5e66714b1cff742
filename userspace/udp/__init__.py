"""UDP between the guest and the host's sockets: flows, trains of datagrams, ICMP errors.

:func:`open_listeners` opens the sockets of inbound rules while low ports are still to be
had; :class:`Udp` is the translator, to which they are attached later.
"""

from __future__ import annotations

from passt.userspace.udp.fromguest import FromGuest as Udp
from passt.userspace.udp.listen import ListenError, open_listeners

__all__ = ["ListenError", "Udp", "open_listeners"]
