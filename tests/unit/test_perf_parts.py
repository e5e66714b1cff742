"""The performance suite's readers of what programs print, names of cases and subjects."""

from __future__ import annotations

from typing import cast

import pytest

from perf.cases import CASES, SETS, CaseError, choose, datagram, stream
from perf.cases.exchange import sockperf_percentiles
from perf.facts import offloads, processor
from perf.lab import Lab, netem_words, wire_words
from perf.loads import exchange
from perf.metrics import METRICS
from perf.sampling import perf_value, strace_total
from perf.subjects import SubjectError, split
from tests.system.kit.pasta import Program
from tests.system.kit.users import User

# -- readers --------------------------------------------------------------------------------------


def test_perf_stat() -> None:
    text = "29,,raw_syscalls:sys_enter,100,100.00,,\n3,,context-switches:u,100,100.00,,\n"
    assert perf_value(text, "raw_syscalls:sys_enter") == 29
    assert perf_value(text, "context-switches") == 3
    with pytest.raises(AssertionError, match="counts no"):
        perf_value("<not counted>,,raw_syscalls:sys_enter,0,100.00,,", "raw_syscalls:sys_enter")


def test_strace() -> None:
    text = (
        "strace: Process 1 attached\n"
        "% time     seconds  usecs/call     calls    errors syscall\n"
        " 60.00    0.000003           0        10         2 epoll_wait\n"
        "100.00    0.000005           0        12         2 total\n"
    )
    assert strace_total(text) == 12
    without_errors = "100.00    0.000005           0        12           total\n"
    assert strace_total(without_errors) == 12
    with pytest.raises(AssertionError, match="counts nothing"):
        strace_total("strace: attach: Operation not permitted\n")


def test_sockperf() -> None:
    lines = "percentile 99.900 = 4302.629", "percentile 50.000 =   11.2"
    text = "".join(f"sockperf: ---> {line}\n" for line in lines)
    assert sockperf_percentiles(text) == {"p50": 11.2, "p999": 4302.629}
    with pytest.raises(AssertionError, match="no percentiles"):
        sockperf_percentiles("ERROR")


def test_machine() -> None:
    text = "processor: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t\t: fpu hypervisor lm\n"
    assert processor(text) == ("A CPU @ 3 GHz", True)
    assert processor(text.replace("hypervisor ", "")) == ("A CPU @ 3 GHz", False)
    shown = "tcp-segmentation-offload: on\n\ttx-tcp-segmentation: on\ntx-checksumming: off\n"
    assert offloads(shown) == "tcp-segmentation-offload"
    assert offloads("") == "none"


def test_iperf3() -> None:
    one = {"sum_received": {"bits_per_second": 8e9, "bytes": 1 << 20}}
    assert stream.received(one).values == {"rate": 8.0}
    both = {**one, "sum_received_bidir_reverse": {"bits_per_second": 2e9, "bytes": 1 << 20}}
    outcome = stream.received(both)
    assert (outcome.values, outcome.mib) == ({"rate": 10.0}, 2.0)
    total = {"packets": 1000, "lost_packets": 250, "seconds": 0.5, "lost_percent": 25.0}
    outcome = datagram.received(total, 1000)
    assert outcome.values == {"rate": 0.012, "loss": 25.0, "packets": 1.5}
    assert outcome.exchanges == 750


# -- loads ----------------------------------------------------------------------------------------


def test_percentiles_say_no_more_than_there_is() -> None:
    assert set(exchange.percentiles([1.0] * 20)) == {"p50", "p90"}
    assert set(exchange.percentiles([1.0] * 200)) == {"p50", "p90", "p99"}
    found = exchange.percentiles([n / 1e6 for n in range(10000)])
    expected = {"p50": 5000.0, "p90": 9000.0, "p99": 9900.0, "p999": 9990.0}
    assert found == pytest.approx(expected)


def test_checksum() -> None:
    # RFC 1071, section 3: the sum of these is ddf2.
    assert exchange.checksum(bytes.fromhex("0001f203f4f5f6f7")) == bytes.fromhex("220d")


def test_delay_is_half_each_way() -> None:
    assert "5000us" in netem_words(10, 0.0)
    assert netem_words(0, 0.1)[-2:] == ["loss", "0.1%"]
    assert wire_words(50, 0.1) == ["--delay", "0.025", "--loss", "0.001"]


# -- names ----------------------------------------------------------------------------------------


def test_cases() -> None:
    for name in SETS:
        assert choose([], name), name
    assert len(choose([], "all")) == len(CASES)
    for case in CASES.values():
        assert case.primary in METRICS
        assert case.sets <= set(SETS)
        assert case.version in (4, 6)
    # Smaller sets are parts of larger ones: figures of one are found in the other.
    assert {c.name for c in choose([], "ci")} <= {c.name for c in choose([], "quick")}
    assert {c.name for c in choose([], "quick")} <= {c.name for c in choose([], "full")}


def test_choice_by_pattern() -> None:
    names = [case.name for case in choose(["tap/tcp/*/mtu1500/v6/x8"], "ci")]
    assert names
    assert all(name.startswith("tap/tcp/") and name.endswith("mtu1500/v6/x8") for name in names)
    with pytest.raises(CaseError, match="no case matches nonsense"):
        choose(["start/plain", "nonsense"], "ci")


def test_subjects() -> None:
    assert split("ours") == ("ours", ["ours"])
    assert split("ebpf") == ("ebpf", ["ours", "--accel=ebpf"])
    assert split("old=tree:HEAD~1 --mtu 1500") == ("old", ["tree:HEAD~1", "--mtu", "1500"])
    assert split("/usr/bin/pasta --no-map-gw") == (
        "/usr/bin/pasta --no-map-gw",
        ["/usr/bin/pasta", "--no-map-gw"],
    )
    with pytest.raises(SubjectError, match="no command"):
        split("a=")
    with pytest.raises(SubjectError, match="No closing quotation"):
        split("a='")


def test_one_copy_serves_all_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ordinary user cannot reach the package, "ours" and "ebpf" run the same copy."""
    made = []

    def install(_folder: str, _user: object) -> Program:
        made.append(Program(["/copy/of/pasta"]))
        return made[-1]

    monkeypatch.setattr(Program, "from_environment", install)
    lab = Lab()
    lab.folder, lab.user = "/nowhere", cast(User, object())
    assert lab.installed() is lab.installed() is made[0]
    assert len(made) == 1
