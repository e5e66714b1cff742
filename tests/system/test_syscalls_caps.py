"""Capability sets and process attributes, each changed in a child process of its own."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from passt.syscalls import caps, prctl
from tests.system.syscalls_child import in_child

pytestmark = pytest.mark.system


def status_field(name: str) -> int:
    """A hexadecimal field of /proc/self/status, as independent evidence."""
    with open("/proc/thread-self/status") as f:
        for line in f:
            if line.startswith(name + ":"):
                return int(line.split()[1], 16)
    raise AssertionError(name)


def check_against_proc() -> caps.Sets:
    sets = caps.current()
    assert sets.effective == status_field("CapEff")
    assert sets.permitted == status_field("CapPrm")
    assert sets.inheritable == status_field("CapInh")
    assert sets.bounding == status_field("CapBnd")
    assert sets.ambient == status_field("CapAmb")
    return sets


def test_current_agrees_with_proc() -> None:
    check_against_proc()


def test_last_agrees_with_proc() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as f:
        assert caps.last() == int(f.read())


def test_reduce_sets() -> None:
    def body() -> None:
        admin, low = caps.mask(caps.CAP_NET_ADMIN), caps.mask(caps.CAP_NET_BIND_SERVICE)
        high = caps.mask(caps.CAP_BPF)
        caps.set_masks(admin | high, admin | low | high, low)
        sets = check_against_proc()
        assert (sets.effective, sets.permitted) == (admin | high, admin | low | high)
        assert sets.inheritable == low
        with pytest.raises(PermissionError, match="capset: "):
            caps.set_masks(0, admin | low | high | 1, 0)
        caps.set_masks(0, 0, 0)
        assert caps.get() == (0, 0, 0)

    in_child(body)


def test_empty_bounding_set() -> None:
    def body() -> None:
        caps.limit_bounding(keep=caps.mask(caps.CAP_SYS_ADMIN, caps.CAP_BPF))
        assert check_against_proc().bounding == caps.mask(caps.CAP_SYS_ADMIN, caps.CAP_BPF)
        caps.limit_bounding()
        assert check_against_proc().bounding == 0

    in_child(body)


def test_bounding_needs_setpcap() -> None:
    def body() -> None:
        permitted = caps.get()[1] & ~caps.mask(caps.CAP_SETPCAP)
        caps.set_masks(permitted, permitted, 0)
        with pytest.raises(PermissionError, match="prctl PR_CAPBSET_DROP"):
            caps.drop_bounding(caps.CAP_CHOWN)

    in_child(body)


def test_ambient() -> None:
    def body() -> None:
        caps.clear_ambient()
        one, two = caps.CAP_NET_ADMIN, caps.CAP_NET_RAW
        permitted = caps.get()[1]
        caps.set_masks(permitted, permitted, 0)
        with pytest.raises(PermissionError, match="PR_CAP_AMBIENT_RAISE"):
            caps.raise_ambient(one)
        caps.set_masks(permitted, permitted, caps.mask(one, two))
        caps.raise_ambient(one)
        caps.raise_ambient(two)
        assert check_against_proc().ambient == caps.mask(one, two)
        caps.lower_ambient(two)
        assert check_against_proc().ambient == caps.mask(one)
        caps.clear_ambient()
        assert check_against_proc().ambient == 0

    in_child(body)


def test_names() -> None:
    assert caps.names(0x200400) == ["CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"]
    assert caps.names(1 << 63) == ["cap_63"]
    assert caps.in_bounding(63) is None


def test_no_new_privs_and_dumpable() -> None:
    def body() -> None:
        assert not prctl.get_no_new_privs()
        prctl.set_no_new_privs()
        assert prctl.get_no_new_privs()
        assert status_field("NoNewPrivs") == 1
        prctl.set_dumpable(False)
        assert prctl.get_dumpable() == 0
        prctl.set_dumpable(True)
        assert prctl.get_dumpable() == 1

    in_child(body)


def test_securebits() -> None:
    def body() -> None:
        bits = prctl.SECBIT_NOROOT | prctl.SECBIT_NO_SETUID_FIXUP
        prctl.set_securebits(bits)
        assert prctl.get_securebits() == bits
        caps.set_masks(0, 0, 0)
        with pytest.raises(PermissionError, match="PR_SET_SECUREBITS"):
            prctl.set_securebits(0)

    in_child(body)


@pytest.mark.parametrize("keep", [False, True])
def test_keepcaps_over_setuid(keep: bool) -> None:
    def body() -> None:
        prctl.set_keepcaps(keep)
        assert prctl.get_keepcaps() == keep
        permitted = caps.get()[1]
        os.setresuid(65534, 65534, 65534)
        assert caps.get()[:2] == (0, permitted if keep else 0)

    in_child(body)


def test_name_is_cut_to_15_bytes() -> None:
    def body() -> None:
        prctl.set_name("passt-0123456789abc")
        assert prctl.get_name() == "passt-012345678"
        with open("/proc/self/comm") as f:
            assert f.read() == "passt-012345678\n"
        prctl.set_name("")
        assert prctl.get_name() == ""

    in_child(body)


def test_parent_death_signal() -> None:
    """A grandchild is killed when its parent ends."""

    def body() -> None:
        assert prctl.get_pdeathsig() == 0
        prctl.set_child_subreaper(True)
        ready, done = os.pipe()
        middle = os.fork()
        if middle == 0:
            grandchild = os.fork()
            if grandchild == 0:
                prctl.set_pdeathsig(signal.SIGKILL)
                os.write(done, b"%d" % (prctl.get_pdeathsig() == signal.SIGKILL))
                signal.pause()
            assert os.read(ready, 1) == b"1"
            os._exit(0)
        assert os.waitpid(middle, 0)[1] == 0
        _, status = os.wait()
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL

    in_child(body)


def test_bad_option_is_named() -> None:
    with pytest.raises(OSError, match="prctl NONSENSE: ") as caught:
        prctl.prctl(0x7FFFFFFF, "NONSENSE")
    assert caught.value.errno == errno.EINVAL
