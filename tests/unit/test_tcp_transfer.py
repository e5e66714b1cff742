"""Property: both streams arrive whole, whatever the guest's habits and the wire's faults."""

from __future__ import annotations

import socket
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passt.userspace.config.model import Config
from tests.unit.tcp_kit import Guest, Host
from tests.unit.tcp_model import Habits, Model, largest_segment

RUNS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def transfer(host: Host, seed: int, *, guest_connects: bool, version: int) -> None:
    """One connection from SYN to the end, all of it drawn from ``seed``."""
    rnd = Random(seed)
    habits = Habits(rnd)
    segment = largest_segment(host, habits, 4 if version == 4 else 16)
    most = min(habits.rcvbuf * 30, 400 * segment, 1 << 20)
    upload = rnd.randbytes(rnd.choice([0, 1, rnd.randint(2, min(most, 300000))]))
    download = rnd.randbytes(rnd.choice([0, 1, rnd.randint(2, most)]))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if guest_connects:
        listener = host.listener(family, rcvbuf=rnd.choice([0, 0, 3000, 30000]))
        guest = Guest(host, listener.getsockname()[1], version=version)
        model = Model(host, guest, rnd, habits, upload, download)
        model.open()
        model.run(lambda: bool(host.flows()))
        model.peer = host.accept(listener)
    else:
        model_peer = host.connect(host.forward(family))
        guest = Guest(host, model_peer.getsockname()[1], version=version, port=80)
        model = Model(host, guest, rnd, habits, upload, download)
        model.peer = model_peer
    model.peer.setblocking(False)
    model.peer_acts()
    model.run(model.complete)
    assert bytes(model.peer_got) == upload
    assert model.received == len(download)
    assert host.ctx.budget.data == 0
    assert host.table.count == 0
    assert not host.ctx.flows4
    assert not host.ctx.flows6


@RUNS
@given(
    seed=st.integers(0, 1 << 32),
    guest_connects=st.booleans(),
    version=st.sampled_from([4, 6]),
    gso=st.booleans(),
    peek_off=st.booleans(),
    mtu=st.sampled_from([68, 1500, 9000, 65520]),
)
def test_streams_arrive(
    seed: int, guest_connects: bool, version: int, gso: bool, peek_off: bool, mtu: int
) -> None:
    with Host(gso=gso, peek_off=peek_off, mtu=mtu) as host:
        transfer(host, seed, guest_connects=guest_connects, version=version)


@pytest.mark.parametrize("guest_connects", [True, False])
def test_peer_that_is_not_local(guest_connects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where acknowledgements follow the peer's, as they do beyond this machine."""

    def distant(config: Config) -> None:
        del config

    for seed in range(8):
        with Host(tweak=distant) as host:
            monkeypatch.setattr("passt.userspace.tcp.fromguest.BULK_FACTOR", 0)
            monkeypatch.setattr("passt.userspace.tcp.fromguest.LOW_RTT_US", -1)
            monkeypatch.setattr(
                "passt.userspace.tcp.base.FlowBase.peer_local",
                property(lambda _: False, lambda _self, _value: None),
            )
            transfer(host, seed, guest_connects=guest_connects, version=4)
