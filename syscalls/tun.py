"""The TUN/TAP device: creation, offloads, virtio network headers.

Source: linux/if_tun.h, linux/virtio_net.h, Documentation/networking/tuntap.rst, the virtio
specification 1.2 section 5.1.6.

A descriptor of /dev/net/tun becomes an interface by TUNSETIFF, in the network namespace the
caller is in at the time of *open*.  With IFF_VNET_HDR every frame is preceded by a
virtio_net_hdr (10 bytes, or 12 with the count of merged buffers, see `set_vnet_hdr_size`).
The offloads given to TUNSETOFFLOAD say what *we* can take: the kernel then hands over frames
without checksums (NEEDS_CSUM) and super-segments of up to 64 KiB, and in either direction
gso_type and gso_size tell how they are to be cut.  Sending such frames into the tap needs no
negotiation.  Multi-byte header fields are native-endian unless `set_vnet_le` was called.
"""

from __future__ import annotations

import os
import struct
from errno import EINVAL, ENAMETOOLONG
from fcntl import ioctl

from passt.syscalls.ioctl import ior, iow
from passt.syscalls.libc import error

TUN_PATH = "/dev/net/tun"
IFNAMSIZ = 16

# Interface flags for TUNSETIFF, as TUNGETFEATURES and TUNGETIFF report them.
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_NAPI = 0x0010
IFF_NAPI_FRAGS = 0x0020
IFF_NO_CARRIER = 0x0040
IFF_MULTI_QUEUE = 0x0100
IFF_PERSIST = 0x0800
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

# Offloads for TUNSETOFFLOAD.
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_UFO = 0x10
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40

# virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET_HDR = struct.Struct("=BBHHHH")
VNET_HDR_LEN = 10
VNET_HDR_MRG_LEN = 12
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_F_DATA_VALID = 2
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_UDP = 3
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
VIRTIO_NET_HDR_GSO_ECN = 0x80

_INT = struct.Struct("i")
_UINT = struct.Struct("I")
# struct ifreq: name, then a union as large as struct ifmap (24 bytes with 64-bit longs, else 16).
_IFREQ = struct.Struct("16sh22x" if struct.calcsize("P") == 8 else "16sh14x")

_KIND = ord("T")
_TUNSETIFF = iow(_KIND, 202, 4)
TUNSETPERSIST = iow(_KIND, 203, 4)
_TUNGETFEATURES = ior(_KIND, 207, 4)
_TUNSETOFFLOAD = iow(_KIND, 208, 4)
_TUNGETIFF = ior(_KIND, 210, 4)
_TUNSETSNDBUF = iow(_KIND, 212, 4)
_TUNGETVNETHDRSZ = ior(_KIND, 215, 4)
_TUNSETVNETHDRSZ = iow(_KIND, 216, 4)
_TUNSETVNETLE = iow(_KIND, 220, 4)


def _call(fd: int, request: int, argument: int | bytes | bytearray, name: str) -> None:
    try:
        ioctl(fd, request, argument)
    except OSError as e:
        raise error(e.errno or 0, f"ioctl {name}") from None


def _set_int(fd: int, request: int, value: int, name: str) -> None:
    _call(fd, request, _INT.pack(value), name)


def _get_uint(fd: int, request: int, name: str) -> int:
    buffer = bytearray(4)
    _call(fd, request, buffer, name)
    value: int = _UINT.unpack(buffer)[0]
    return value


def open_tun(path: str = TUN_PATH) -> int:
    """Open the clone device, non-blocking and close-on-exec; returns the descriptor.

    The interface will live in the caller's present network namespace.  OSError as open(2):
    ENOENT or ENXIO without the driver, EACCES by file mode.
    """
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def set_iff(fd: int, name: str, flags: int) -> str:
    """Create or attach to interface `name` (TUNSETIFF); returns the name the kernel chose.

    An empty name or one with "%d" lets the kernel pick.  OSError: EBUSY if the interface is
    in use, EPERM without CAP_NET_ADMIN over the namespace, EINVAL if the flags (multi-queue
    above all) do not agree with an existing persistent interface or the kernel does not know
    one of them, ENAMETOOLONG above 15 bytes.
    """
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) >= IFNAMSIZ:
        raise error(ENAMETOOLONG, "ioctl TUNSETIFF")
    if b"\0" in raw:
        raise error(EINVAL, "ioctl TUNSETIFF")
    # The field is a short: IFF_TUN_EXCL is its sign bit.
    request = bytearray(_IFREQ.pack(raw, flags - 0x10000 if flags & 0x8000 else flags))
    _call(fd, _TUNSETIFF, request, "TUNSETIFF")
    return request[:IFNAMSIZ].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def get_iff(fd: int) -> tuple[str, int]:
    """Name and flags of the interface behind `fd` (TUNGETIFF); OSError EBADFD if none yet."""
    request = bytearray(_IFREQ.size)
    _call(fd, _TUNGETIFF, request, "TUNGETIFF")
    raw, flags = _IFREQ.unpack(request)
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"), flags & 0xFFFF


def get_features(fd: int) -> int:
    """Set of IFF_ flags the driver knows (TUNGETFEATURES); no interface needed."""
    return _get_uint(fd, _TUNGETFEATURES, "TUNGETFEATURES")


def set_persist(fd: int, persist: bool) -> None:
    """Keep the interface when its last descriptor closes, or not (TUNSETPERSIST)."""
    _call(fd, TUNSETPERSIST, int(persist), "TUNSETPERSIST")


def set_offload(fd: int, offloads: int) -> None:
    """Announce the TUN_F_ set that we can receive; OSError EINVAL if one is unknown."""
    _call(fd, _TUNSETOFFLOAD, offloads, "TUNSETOFFLOAD")


def probe_offload(fd: int) -> int:
    """Announce the largest offload set the kernel accepts and return it.

    Tried in order: checksums with TCP and UDP segmentation (USO, Linux 6.2), without UDP,
    checksums alone; 0 if even these are refused.  The accepted set is in force on return.
    """
    tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
    for offloads in (tso | TUN_F_USO4 | TUN_F_USO6, tso, TUN_F_CSUM):
        try:
            set_offload(fd, offloads)
        except OSError as e:
            if e.errno != EINVAL:
                raise
        else:
            return offloads
    return 0


def set_vnet_hdr_size(fd: int, size: int) -> None:
    """Length of the virtio header in front of frames: 10, or 12 with num_buffers."""
    _set_int(fd, _TUNSETVNETHDRSZ, size, "TUNSETVNETHDRSZ")


def get_vnet_hdr_size(fd: int) -> int:
    """Length of the virtio header in front of frames, bytes."""
    return _get_uint(fd, _TUNGETVNETHDRSZ, "TUNGETVNETHDRSZ")


def set_vnet_le(fd: int, little: bool) -> None:
    """Header fields little-endian whatever the machine (virtio 1.0), or native."""
    _set_int(fd, _TUNSETVNETLE, int(little), "TUNSETVNETLE")


def set_sndbuf(fd: int, size: int) -> None:
    """Bytes of frames we have written that may be in flight in the kernel; EINVAL if ≤ 0."""
    _set_int(fd, _TUNSETSNDBUF, size, "TUNSETSNDBUF")
