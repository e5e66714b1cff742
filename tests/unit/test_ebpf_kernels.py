"""Kernels by their version: too old, known to be broken, and neither."""

from __future__ import annotations

import pytest

from passt.kernel.ebpf import acquire, kernels


@pytest.mark.parametrize(
    ("release", "number"),
    [
        ("6.18.44", (6, 18, 44)),
        ("6.12.43+deb13-amd64", (6, 12, 43)),
        ("6.8.0-51-generic", (6, 8, 0)),
        ("6.16-rc1", (6, 16, 0)),
        ("7.0.0-rc3-00001-gdeadbeef", (7, 0, 0)),
        ("6", (6, 0, 0)),
        ("", (0, 0, 0)),
        ("x.y.z", (0, 0, 0)),
    ],
)
def test_version(release: str, number: tuple[int, int, int]) -> None:
    assert kernels.version(release) == number


@pytest.mark.parametrize(
    "release", ["6.6.94", "6.6.200", "6.12.34", "6.12.96-1", "6.15.3", "6.16.0", "6.18.44", "7.1.0"]
)
def test_no_objection(release: str) -> None:
    assert kernels.objection(release) == ""


@pytest.mark.parametrize("release", ["5.14.0-503.el9", "6.1.0-56-amd64", "6.3.13", "nonsense"])
def test_too_old(release: str) -> None:
    assert kernels.objection(release) == f"kernel too old: {release}, at least 6.4 needed"


@pytest.mark.parametrize(
    ("release", "mended"),
    [
        ("6.4.0", "6.6.94"),
        ("6.5.13", "6.6.94"),
        ("6.6.93", "6.6.94"),
        ("6.7.0", "6.12.34"),
        ("6.8.0-51-generic", "6.12.34"),
        ("6.12.33", "6.12.34"),
        ("6.13.1", "6.15.3"),
        ("6.15.2", "6.15.3"),
    ],
)
def test_broken(release: str, mended: str) -> None:
    text = kernels.objection(release)
    assert text.startswith(f"kernel {release}: ")
    assert text.endswith(f"mended in {mended}")


def test_objection_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is even tried on a kernel that is known to be broken."""

    def never(**_words: object) -> None:
        raise AssertionError("tried")

    monkeypatch.setattr(acquire, "_find", never)
    monkeypatch.setattr(kernels, "objection", lambda _release: "broken")
    with pytest.raises(acquire.UnavailableError, match="broken"):
        acquire.acquire(compile_first=False)
