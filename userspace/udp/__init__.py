"""UDP between the guest and the host's sockets: flows, trains of datagrams, ICMP errors.

:func:`open_listeners` opens the sockets of inbound rules while low ports are still to be
had; :class:`Udp` is the translator, to which they are attached later.
"""

from __future__ import annotations

from passt.userspace.config.model import IPPROTO_UDP
from passt.userspace.flow import listen
from passt.userspace.flow.listen import ListenError
from passt.userspace.udp.fromguest import FromGuest as Udp
from passt.userspace.udp.sockets import listening_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from passt.userspace.config.model import Config, Rule

__all__ = ["ListenError", "Udp", "open_listeners"]


def open_listeners(config: Config) -> list[tuple[Rule, int, socket.socket]]:
    """Bound sockets of the UDP rules in ``config.rules``, with rule and port.

    Raises :class:`ListenError`, whose text is for the user, for the first that fails.
    """
    return listen.open_listeners(config, IPPROTO_UDP, listening_socket) if config.udp else []
