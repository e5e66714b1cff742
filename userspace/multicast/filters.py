"""What the guest listens to in one group: all sources but some, or some sources only.

A record of a report (:mod:`passt.userspace.wire.membership`) is the whole state, or a change of
it.  A router that has many hosts behind a port merges what they say, and asks again before it
believes that nobody listens any more (RFC 3376, 6; RFC 3810, 7); ours is one host, which is
taken at its word.

Sources are limited to :data:`~passt.userspace.wire.membership.MAX_SOURCES`.  Of sources to
exclude, those beyond are heard; of sources to include, they are not.
"""

from __future__ import annotations

from passt.userspace.wire.membership import (
    ALLOW,
    BLOCK,
    IS_EXCLUDE,
    MAX_SOURCES,
    TO_EXCLUDE,
)


class Filter:
    """Sources that are heard: those in ``sources``, or with ``exclude`` all others."""

    __slots__ = ("exclude", "sources")

    def __init__(self, exclude: bool = False, sources: tuple[bytes, ...] = ()) -> None:
        self.exclude = exclude
        #: In order of mention, each once.
        self.sources = sources

    def apply(self, kind: int, named: tuple[bytes, ...]) -> Filter:
        """The filter after a record of ``kind`` with these sources."""
        if kind not in (ALLOW, BLOCK):
            return Filter(kind in (IS_EXCLUDE, TO_EXCLUDE), _few(named))
        if (kind == ALLOW) != self.exclude:
            return Filter(self.exclude, _few(self.sources + named))
        gone = frozenset(named)
        return Filter(self.exclude, tuple(addr for addr in self.sources if addr not in gone))

    @property
    def is_empty(self) -> bool:
        """Nothing is heard: the guest has left."""
        return not (self.exclude or self.sources)

    def hears(self, source: bytes) -> bool:
        """Whether the guest wants what ``source`` sends."""
        return (source in self.sources) != self.exclude

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Filter)
            and self.exclude == other.exclude
            and frozenset(self.sources) == frozenset(other.sources)
        )

    __hash__ = None  # type: ignore[assignment]


def _few(sources: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(sources))[:MAX_SOURCES]
