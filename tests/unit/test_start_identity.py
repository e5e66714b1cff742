"""Whom to run as."""

from __future__ import annotations

import os
import pwd

import pytest

from passt.kernel import identity
from passt.kernel.errors import SetupError

INITIAL = b"         0          0 4294967295\n"


@pytest.fixture
def uid_map(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What /proc/self/uid_map contains: its first element."""
    content = [INITIAL]
    monkeypatch.setattr(os, "read", lambda _fd, _size: content[0])
    return content


@pytest.mark.parametrize(
    ("text", "initial"),
    [
        (INITIAL, True),
        (b"         0       1000          1\n", False),
        (b"         0          0 4294967294\n", False),
        (b"0 1000 1\n1 100000 65536\n", False),
        (b"", False),
    ],
)
def test_initial_namespace(uid_map: list[bytes], text: bytes, initial: bool) -> None:
    uid_map[0] = text
    assert identity.in_initial_userns() is initial


def test_root_of_the_machine_becomes_nobody(
    uid_map: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    chosen, warning = identity.chosen(None)
    entry = pwd.getpwnam("nobody")
    assert (chosen.uid, chosen.gid) == (entry.pw_uid, entry.pw_gid)
    assert warning == "Started as root, will change to nobody."


def test_root_elsewhere_stays(uid_map: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    uid_map[0] = b"0 1000 1\n"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)
    chosen, warning = identity.chosen(None)
    assert (chosen.uid, chosen.gid, warning) == (0, 0, "")


def test_ordinary_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getegid", lambda: 5678)
    chosen, warning = identity.chosen(None)
    assert (chosen.uid, chosen.gid, warning) == (1234, 5678, "")


def test_runas_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    chosen, warning = identity.chosen((0, 0))
    assert (chosen.uid, chosen.gid, warning) == (0, 0, "")


def test_nobody_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> object:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", missing)
    assert (identity.nobody().uid, identity.nobody().gid) == (65534, 65534)


def test_groups_stay_without_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_groups: list[int]) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "setgroups", refuse)
    identity.drop_groups()


def test_failures_name_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_ids: int) -> None:
        raise OSError(22, "no")

    monkeypatch.setattr(os, "setresgid", refuse)
    with pytest.raises(SetupError, match=r"^Can't set GID to 4711 in userns: Invalid arg"):
        identity.switch(4711, 0, " in userns")
    monkeypatch.setattr(os, "setresgid", lambda *_ids: None)
    monkeypatch.setattr(os, "setresuid", refuse)
    with pytest.raises(SetupError, match=r"^Can't set UID to 4712: Invalid argument$"):
        identity.switch(0, 4712)
