"""Out-of-order data against a model that keeps every byte by its number."""

from __future__ import annotations

import itertools
import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.tcp.const import MAX_WINDOW
from passt.userspace.tcp.reassembly import CHUNK, MAX_PIECES, Reassembly
from passt.userspace.tcp.window import room, usable

BASE = 1 << 33  # unwrapped numbers grow beyond 32 bits


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 15)), max_size=30),
    st.integers(0, 60),
    st.sampled_from((1, 2, 7, CHUNK)),
)
def test_against_a_dictionary(segments: list[tuple[int, int]], arrived: int, chunk: int) -> None:
    with mock.patch("passt.userspace.tcp.reassembly.CHUNK", chunk):
        compare(segments, arrived, chunk)


def compare(segments: list[tuple[int, int]], arrived: int, chunk: int) -> None:
    pieces = Reassembly()
    known: dict[int, int] = {}
    for count, (start, size) in enumerate(segments):
        data = bytes((count,)) * size
        fresh = [at for at in range(start, start + size) if at not in known]
        assert pieces.insert(BASE + start, memoryview(data)) == len(fresh)
        known.update((at, count) for at in fresh)
        assert pieces.size == len(known)
        spans = sorted((a - BASE & 0xFFFFFFFF, b - BASE & 0xFFFFFFFF) for a, b in pieces.blocks(99))
        covered = [at for a, b in spans for at in range(a, b)]
        assert covered == sorted(known)
        assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))
        first = pieces.blocks(1)[0]
        assert first[0] <= (BASE + start) & 0xFFFFFFFF < first[1]
        for one, two in itertools.pairwise(pieces._pieces):
            reach = one.start + len(one.data)
            assert reach <= two.start
            assert reach < two.start or max(len(one.data), len(two.data)) >= chunk
    found, let_go = pieces.take(BASE + arrived)
    expected = bytearray()
    while (at := arrived + len(expected)) in known:
        expected.append(known[at])
    assert b"".join(found) == bytes(expected)
    left = [at for at in known if at > arrived + len(expected)]
    assert pieces.size == len(left)
    assert let_go == len(known) - len(left)
    assert bool(pieces) == bool(left)


def test_number_of_ranges_is_limited() -> None:
    pieces = Reassembly()
    for at in range(MAX_PIECES + 10):
        pieces.insert(2 * at + 1, memoryview(b"x"))
    assert pieces.size == MAX_PIECES
    assert pieces.insert(2, memoryview(b"y")) == 1  # touches a range
    assert len(pieces.blocks(4)) == 4


def test_gap_that_is_filled_backwards() -> None:
    """What lies behind is not copied for each byte: that would be eight gigabytes here."""
    pieces = Reassembly()
    behind = BASE + (1 << 20)
    pieces.insert(behind, memoryview(bytes(8 << 20)))
    before = time.thread_time()
    for at in range(1, 1001):
        assert pieces.insert(behind - at, memoryview(b"x")) == 1
    # Some 10 ms; with one copy each, three seconds.
    assert time.thread_time() - before < 0.5
    assert pieces.blocks(4) == [((behind - 1000) & 0xFFFFFFFF, (behind + (8 << 20)) & 0xFFFFFFFF)]
    assert len(pieces._pieces) <= 3
    found, _ = pieces.take(behind - 1000)
    assert b"".join(found) == b"x" * 1000 + bytes(8 << 20)


def test_whole_window_in_small_pieces() -> None:
    """Backwards, forwards, and every other first: the limit of pieces is not reached."""
    size = 1000
    count = MAX_WINDOW // size
    for order in (
        range(count),
        range(count - 1, -1, -1),
        [*range(0, 900, 2), *range(1, 900, 2), *range(900, count)],
    ):
        pieces = Reassembly()
        for at in order:
            assert pieces.insert(BASE + at * size, memoryview(bytes(size))) == size
        assert len(pieces._pieces) <= MAX_PIECES
        assert len(pieces.blocks(4)) == 1
        assert pieces.size == count * size


@given(st.integers(0, 1 << 26))
def test_usable_part_of_a_buffer(sndbuf: int) -> None:
    part = usable(sndbuf)
    assert sndbuf * 3 // 4 - 3 < part <= sndbuf
    assert usable(sndbuf + 1) >= part - 1  # rounding aside it only grows
    if sndbuf <= 128 << 10:
        assert part == sndbuf
    if sndbuf >= 4 << 20:
        assert part <= sndbuf * 3 // 4


@given(
    st.integers(0, 1 << 24),
    st.integers(0, 1 << 25),
    st.integers(0, 1 << 25),
    st.integers(88, 65495),
)
def test_room(sndbuf: int, queued: int, outstanding: int, mss: int) -> None:
    space = room(sndbuf, queued, outstanding, mss)
    assert 0 <= space <= max(sndbuf - queued, 0)
    if queued >= sndbuf:
        assert space == 0
