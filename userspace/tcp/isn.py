"""Initial sequence numbers by RFC 6528: a keyed hash of the tuple plus a clock.

The clock ticks every 32 ns and so wraps in 137 s; the hash makes the number unpredictable
for anybody who does not hold the key, which is drawn once per run.
"""

from __future__ import annotations

import os
from time import monotonic_ns

try:
    # hashlib loads OpenSSL, which costs more than the rest of start-up.
    from _blake2 import blake2s
except ImportError:  # pragma: no cover - other builds of Python
    from hashlib import blake2s

_KEY = os.urandom(32)


def initial_sequence(key: bytes) -> int:
    """The 32-bit ISN for the connection whose packed tuple of addresses is ``key``."""
    digest = blake2s(key, digest_size=4, key=_KEY).digest()
    return (int.from_bytes(digest, "big") + (monotonic_ns() >> 5)) & 0xFFFFFFFF
