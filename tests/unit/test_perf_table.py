"""Results of the performance suite as text."""

from __future__ import annotations

from perf.results import CaseInfo, Count, Results, Sample, SubjectInfo
from perf.table import between, cost, key_figures, markdown, median_ratio, plain, rows


def example(factor: float = 1.0) -> Results:
    """Two rounds of two cases: ours is half as fast, times *factor*."""
    results = Results(
        "2026-01-01T00:00:00+0000",
        subjects={"direct": SubjectInfo("direct"), "ours": SubjectInfo("ours")},
        cases={
            "splice/tcp/in": CaseInfo("TCP on loopback", "splice/tcp", "rate"),
            "tap/icmp/rr/remote/v4": CaseInfo("echo", "tap/icmp", "p50"),
        },
    )
    for number, speed in ((1, 10.0), (2, 20.0)):
        for subject, share in (("direct", 1.0), ("ours", 0.5 * factor)):
            cpu = None if subject == "direct" else 0.5
            bulk = {"rate": speed * share}
            times = {"p50": speed / share, "p99": 100.0}
            results.samples += [
                Sample("splice/tcp/in", subject, number, bulk, cpu, 1.0, mib=512.0),
                Sample("tap/icmp/rr/remote/v4", subject, number, times, cpu, 1.0, exchanges=1000),
            ]
    results.counts = [
        Count("splice/tcp/in", "ours", "perf", 1000, 10, 100.0, 0),
        Count("tap/icmp/rr/remote/v4", "ours", "perf", 1000, 10, 0.0, 200),
    ]
    return results


def test_ratios_are_of_the_same_round() -> None:
    results = example()
    assert median_ratio(results, "splice/tcp/in", "rate", "ours", "direct") == 0.5
    assert median_ratio(results, "tap/icmp/rr/remote/v4", "p50", "ours", "direct") == 0.5
    assert median_ratio(results, "tap/icmp/rr/remote/v4", "p90", "ours", "direct") is None


def test_cost() -> None:
    results = example()
    assert cost(results, "splice/tcp/in", "ours") == "1.00 s/GiB, 10.0 calls/MiB"
    assert cost(results, "tap/icmp/rr/remote/v4", "ours") == "500 µs each, 5.0 calls each"
    assert cost(results, "splice/tcp/in", "direct") == ""


def test_table() -> None:
    table = rows(example(), ["direct", "ours"], "direct")
    assert table == [
        ["measurement", "direct", "ours"],
        [
            "TCP on loopback",
            "15 Gbit/s ±33 %",
            "7.5 Gbit/s ±33 % (×0.50); 1.00 s/GiB, 10.0 calls/MiB",
        ],
        ["echo ↓", "15 µs ±33 %", "30 µs ±33 % (×0.50); 500 µs each, 5.0 calls each"],
        ["echo: 99th percentile ↓", "100 µs ±0 %", "100 µs ±0 % (×1.00)"],
    ]
    assert markdown(table).splitlines()[:2] == ["| measurement | direct | ours |", "|---|---|---|"]
    widths = {line.index("7.5 Gbit/s") for line in plain(table).splitlines() if "7.5" in line}
    assert widths == {plain(table).index("ours")}


def test_missing_figures() -> None:
    results = example()
    results.samples = [s for s in results.samples if s.subject == "direct"]
    assert rows(results, ["direct", "ours"], "direct")[1][2] == "–"


def test_two_runs_are_compared_by_ratios() -> None:
    first, second = example(), example(1.5)
    for sample in second.samples:  # a machine that is twice as fast
        sample.values.update({k: v * 2 for k, v in sample.values.items() if k == "rate"})
    table = between(first, second, "direct")
    assert table[1] == ["TCP on loopback", "ours", "×0.50", "×0.75", "×1.50"]


def test_key_figures() -> None:
    text = key_figures(example(), ["direct", "ours"], "direct")
    assert "| TCP on loopback | 15 Gbit/s ±33 % | 7.5 Gbit/s ±33 % (×0.50) |" in text
    assert "99th" not in text
