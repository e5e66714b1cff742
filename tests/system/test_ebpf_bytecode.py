"""The program for the kernel: shipped as its source says; maps that lie are found out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from passt.kernel.ebpf import acquire, bytecode, maps, probe
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


def test_shipped_bytecode_is_of_this_source() -> None:
    """Its digest says so, and it is one that the kernel takes."""
    assert bytecode.shipped()
    with open(bytecode.SHIPPED, "rb") as file:
        assert file.read(32) == bytecode.digest()


@pytest.mark.skipif(not has_bcc(), reason="bcc is not installed: python3-bpfcc")
def test_shipped_bytecode_is_what_the_compiler_makes() -> None:
    assert bytecode.compiled() == bytecode.shipped(), "run: make bytecode"


def test_source_and_layout_agree() -> None:
    with open(bytecode.SOURCE) as file:
        assert f"#define SLOTS {SLOTS}\n" in file.read()


def test_changed_source_is_noticed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/verdict.bpf.c"
    with open(bytecode.SOURCE) as source, open(path, "w") as copy:
        copy.write(source.read() + "\n")
    monkeypatch.setattr(bytecode, "SOURCE", path)
    with pytest.raises(bytecode.BytecodeError, match="older than its source"):
        bytecode.shipped()


def test_without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "_COMPILER", "/nonexistent.py")
    with pytest.raises(bytecode.BytecodeError, match="compiler failed"):
        bytecode.compiled()


def test_no_way_to_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All reasons are told."""
    monkeypatch.setattr(bytecode, "SHIPPED", "/nonexistent")
    monkeypatch.setattr(bytecode, "_COMPILER", "/nonexistent.py")
    with pytest.raises(acquire.UnavailableError) as caught:
        acquire.acquire(compile_first=False)
    assert str(caught.value).startswith("bytecode: No such file or directory; compiler failed")


def test_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquire, "OLDEST", (999, 0))
    with pytest.raises(acquire.UnavailableError, match=r"kernel too old: .* at least 999.0 needed"):
        acquire.acquire(compile_first=False)


def test_verifier_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that the kernel does not take is compiled anew, and then that is the end."""
    nothing = b"\x95" + bytes(7)
    monkeypatch.setattr(bytecode, "shipped", lambda: nothing)
    monkeypatch.setattr(bytecode, "compiled", lambda: nothing)
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


def test_probe_passes_again_and_again() -> None:
    made, how = acquire.acquire(compile_first=False)
    assert how == "own maps, program as shipped"
    for _ in range(20):
        probe.probe(made)
    assert bpf.map_keys(made._ends, 8) == []
    made.close()
