"""Wire codecs: the layout of frames, packets and segments, and nothing else.

Codecs know neither sockets nor flows nor configuration.  They share these conventions:

* Parsers take ``(buf, off, end)``: the header starts at ``buf[off]``, nothing at or behind
  ``buf[end]`` belongs to it, and the caller guarantees ``0 <= off <= end <= len(buf)``.
* All content is hostile.  A parser never raises; it returns a plain tuple whose first
  element is negative, ``-reason``, if the input must be dropped.  Reasons are the numbers of
  :mod:`passt.userspace.wire.drops`.  Tuples of drops are constants: nothing is allocated.
* Integers are in host representation, addresses are packed ``bytes`` in network order
  (4 for IPv4, 16 for IPv6, 6 for MACs), lengths and offsets are bytes.
* Builders are trusted with what they are given: values out of range raise ``struct.error``.
"""

from __future__ import annotations

#: What parsers read from and checksums run over.  Views must be one-dimensional bytes.
Octets = bytes | bytearray | memoryview
