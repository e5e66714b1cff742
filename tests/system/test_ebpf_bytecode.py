"""The programs for the kernel: shipped as their source says; maps that lie are found out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from passt.kernel.ebpf import acquire, bytecode, kernels, lookup_layout, maps, probe
from passt.kernel.ebpf.layout import SLOTS
from passt.syscalls import bpf

pytestmark = pytest.mark.system


def has_bcc() -> bool:
    for interpreter in (sys.executable, "/usr/bin/python3"):
        if os.access(interpreter, os.X_OK):
            words = [interpreter, "-c", "import bcc"]
            if subprocess.run(words, capture_output=True, check=False).returncode == 0:
                return True
    return False


every_code = pytest.mark.parametrize("code", bytecode.ALL, ids=lambda code: code.function)


@every_code
def test_shipped_bytecode_is_of_this_source(code: bytecode.Code) -> None:
    """Its digest says so, and it is one that the kernel takes."""
    assert bytecode.shipped(code)
    with open(code.shipped, "rb") as file:
        assert file.read(32) == bytecode.digest(code)


@every_code
@pytest.mark.skipif(not has_bcc(), reason="bcc is not installed: python3-bpfcc")
def test_shipped_bytecode_is_what_the_compiler_makes(code: bytecode.Code) -> None:
    assert bytecode.compiled(code) == bytecode.shipped(code), "run: make bytecode"


def test_source_and_layout_agree() -> None:
    with open(bytecode.VERDICT.source) as file:
        assert f"#define SLOTS {SLOTS}\n" in file.read()
    with open(bytecode.LOOKUP.source) as file:
        text = file.read()
    for name in ("SLOTS", "PORTS", "IPV4", "IPV6"):
        assert f"#define {name} {getattr(lookup_layout, name)}\n" in text
    for name in ("OPEN", "COUNT"):
        assert f"#define {name} {getattr(lookup_layout, name):#x}\n" in text


def test_changed_source_is_noticed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/verdict.bpf.c"
    with open(bytecode.VERDICT.source) as source, open(path, "w") as copy:
        copy.write(source.read() + "\n")
    monkeypatch.setattr(bytecode.VERDICT, "source", path)
    with pytest.raises(bytecode.BytecodeError, match="older than its source"):
        bytecode.shipped()


def test_without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "_COMPILER", "/nonexistent.py")
    with pytest.raises(bytecode.BytecodeError, match="compiler failed"):
        bytecode.compiled()


def test_no_way_to_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All reasons are told."""
    monkeypatch.setattr(bytecode.VERDICT, "shipped", "/nonexistent")
    monkeypatch.setattr(bytecode, "_COMPILER", "/nonexistent.py")
    with pytest.raises(acquire.UnavailableError) as caught:
        acquire.acquire(compile_first=False)
    assert str(caught.value).startswith("bytecode: No such file or directory; compiler failed")


def test_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "OLDEST", (999, 0, 0))
    with pytest.raises(acquire.UnavailableError, match=r"kernel too old: .* at least 999.0 needed"):
        acquire.acquire(compile_first=False)


def test_verifier_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that the kernel does not take is compiled anew, and then that is the end."""
    nothing = b"\x95" + bytes(7)
    monkeypatch.setattr(bytecode, "shipped", lambda _: nothing)
    monkeypatch.setattr(bytecode, "compiled", lambda _: nothing)
    with pytest.raises(acquire.UnavailableError, match=r"program refused: E.*; program refused: E"):
        acquire.acquire(compile_first=False)


@pytest.mark.parametrize(
    ("result", "finding"), [(0, "TimeoutError|early data"), (1, "TimeoutError|data missing")]
)
def test_probe_finds_fault(result: int, finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that drop, or pass, whatever comes."""
    monkeypatch.setattr(probe, "_PATIENCE", 0.2)
    fds = maps.make()
    maps.attach(fds, b"\xb7\0\0\0" + bytes([result, 0, 0, 0]) + b"\x95" + bytes(7))
    made = maps.MapSet(fds)
    with pytest.raises(probe.ProbeError, match=finding):
        probe.probe(made)
    made.close()


def test_probe_of_maps_with_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that no program writes are a reason not to use the maps, not to end."""
    made, _ = acquire.acquire(compile_first=False)
    with monkeypatch.context() as patch:
        patch.setattr(made, "counts", [(1 << 64) - 1] * len(made.counts))
        with pytest.raises(probe.ProbeError, match="ValueError"):
            probe.probe(made)
    made.close()


def test_probe_passes_again_and_again() -> None:
    made, how = acquire.acquire(compile_first=False)
    assert how == "own maps, program as shipped"
    for _ in range(20):
        probe.probe(made)
    assert bpf.map_keys(made._ends, 8) == []
    made.close()
