"""UDP between the guest, the host's sockets and those of the namespace.

:func:`open_listeners` opens the sockets of inbound rules while low ports are still to be
had; :class:`Udp` is the translator, to which they are attached later.
"""

from __future__ import annotations

from passt.userspace.config.model import IPPROTO_UDP
from passt.userspace.flow import listen
from passt.userspace.flow.listen import ListenError
from passt.userspace.udp.sockets import listening_socket
from passt.userspace.udp.splice import Splice as Udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from passt.userspace.config.model import Config, Rule

__all__ = ["ListenError", "Udp", "open_listeners"]


def open_listeners(config: Config) -> list[tuple[Rule, int, socket.socket]]:
    """Bound sockets of the UDP rules in ``config.rules``, with rule and port.

    Raises :class:`ListenError`, whose text is for the user, for the first that fails.
    """
    if not config.udp:
        return []

    def new_socket(family: int, device: str) -> socket.socket:
        return listening_socket(family, device, freebind=config.freebind)

    return listen.open_listeners(config, IPPROTO_UDP, new_socket)
