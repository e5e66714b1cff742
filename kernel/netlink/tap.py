"""The tap device in the namespace: opening it, attaching to one that exists.

Theory of operation
-------------------
The clone device belongs to the network namespace its opener is in.  An interface of the wanted
name may be there already: a persistent tap made by somebody else, which is attached to.  The
kernel demands that the multi-queue flag then agrees with how it was made, and answers EINVAL
otherwise; there is no way to ask beforehand from here, so the other flag is tried.

Frames carry the 10-byte virtio header in the machine's byte order if the driver has it: without
merged buffers the longer form would say nothing more.  The largest set of offloads the driver
takes is announced, so that one read brings up to 64 KiB.

Source: Documentation/networking/tuntap.rst; `passt.syscalls.tun`.
"""

from __future__ import annotations

import os
from errno import EINVAL

from passt.syscalls import bare_socket as socket
from passt.syscalls import tun


def open_tap(name: str) -> tuple[int, str, int, bool]:
    """Open /dev/net/tun in the present network namespace as Ethernet interface `name`.

    Returns the descriptor (non-blocking, close-on-exec), the interface's name, the offloads
    (TUN_F_ flags) in force, and whether frames carry the virtio header.  OSError whose text
    names the step that failed.
    """
    try:
        fd = tun.open_tun()
    except OSError as e:
        raise OSError(e.errno, f"Couldn't open {tun.TUN_PATH}: {_reason(e)}") from None
    try:
        flags = tun.IFF_TAP | tun.IFF_NO_PI | (tun.get_features(fd) & tun.IFF_VNET_HDR)
        actual = _attach(fd, name, flags)
        if not flags & tun.IFF_VNET_HDR:
            return fd, actual, 0, False
        # A persistent tap keeps what its previous user set.
        tun.set_vnet_hdr_size(fd, tun.VNET_HDR_LEN)
        tun.set_vnet_le(fd, False)
        return fd, actual, tun.probe_offload(fd), True
    except OSError as e:
        os.close(fd)
        raise OSError(e.errno, f"Failed to set up tap device in namespace: {_reason(e)}") from None


def _attach(fd: int, name: str, flags: int) -> str:
    try:
        return tun.set_iff(fd, name, flags)
    except OSError as e:
        error = e
    if error.errno == EINVAL and _exists(name):
        try:
            return tun.set_iff(fd, name, flags | tun.IFF_MULTI_QUEUE)
        except OSError:
            pass
    reason = os.strerror(error.errno or 0)
    raise OSError(error.errno, f"TUNSETIFF ioctl on {tun.TUN_PATH} failed: {reason}")


def _exists(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
