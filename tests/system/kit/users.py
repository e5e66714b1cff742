"""The ordinary user of the tests, and a copy of the package which that user may read and run.

Rootless use is the normal use of pasta, so the tests run it as an unprivileged account. A
development tree often lies where that account cannot look (an interpreter under ``/root``), hence
the copy: package files, byte-compiled, a virtual environment made of a system interpreter of the
same version, and the console script as installed. The copy also keeps a long test run consistent
while the tree is being edited.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig

NAME = "passt-test"
MOST_RUNS = 30
TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))


class User:
    """A local account: *prefix* on a command line runs the rest as that account."""

    def __init__(self, name: str) -> None:
        entry = pwd.getpwnam(name)
        self.name = name
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.prefix = (
            []
            if self.uid == 0
            else [
                "setpriv",
                f"--reuid={self.uid}",
                f"--regid={self.gid}",
                "--clear-groups",
                "--",
            ]
        )

    def __repr__(self) -> str:
        return f"<User {self.name}>"

    def can_run(self, argv: list[str]) -> bool:
        """Tell whether *argv* ends with status 0 when run as this user.

        A shell executes it: setpriv itself could still look where only root may.
        """
        words = [*self.prefix, "sh", "-c", 'exec "$0" "$@"', *argv]
        try:
            done = subprocess.run(words, capture_output=True, timeout=30, check=False, cwd="/")
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


_user: User | None = None


def ordinary_user() -> User:
    """Return the unprivileged account of this run; create it if it does not exist.

    Runs at the same time have different ones, each locked until its process ends: what belongs to a
    user, maps for acceleration above all, is not taken away by somebody else.
    """
    global _user
    if _user is not None:
        return _user
    for number in range(1, MOST_RUNS + 1):
        name = NAME if number == 1 else f"{NAME}{number}"
        lock = os.open(f"/run/lock/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        _user = _account(name)
        return _user
    raise AssertionError(f"more than {MOST_RUNS} runs at a time")


def _account(name: str) -> User:
    try:
        pwd.getpwnam(name)
    except KeyError:
        options = ["--system", "--no-create-home", "-d", "/nonexistent", "-s", "/bin/sh"]
        subprocess.run(["useradd", *options, name], check=True)
    return User(name)


def install_copy(folder: str, script: str, user: User, tree: str = TREE) -> str:
    """Install the package in *folder* for *user*; return the path of the new console script.

    *script* is the console script of the development environment; its text is reused, so that
    start-up costs what it costs when installed by pip. Packages that passt depends on are used
    from where they are, or copied when *user* cannot read them there. *tree* is the source tree
    to install, by default the one that this file is in.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    candidates = [os.path.realpath(sys.executable), shutil.which(version, path="/usr/bin") or ""]
    base = next((c for c in candidates if c and user.can_run([c, "-c", ""])), None)
    if base is None:
        raise RuntimeError(f"no {version} that user {user.name} can run: tried {candidates}")
    environment = os.path.join(folder, "venv")
    subprocess.run([base, "-m", "venv", "--without-pip", environment], check=True)
    site = os.path.join(environment, "lib", version, "site-packages")
    shutil.copytree(
        os.path.join(tree, "passt"),
        os.path.join(site, "passt"),
        ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"),
    )
    source = sysconfig.get_path("purelib")
    for dependency in ("pyroute2", "psutil"):
        path = os.path.join(source, dependency)
        if os.path.isdir(path):
            shutil.copytree(path, os.path.join(site, dependency))
    subprocess.run([base, "-m", "compileall", "-q", site], check=True)
    with open(script) as file:
        _, _, body = file.read().partition("\n")
    copy = os.path.join(environment, "bin", os.path.basename(script))
    with open(copy, "w") as file:
        file.write(f"#!{environment}/bin/{version}\n{body}")
    os.chmod(copy, 0o755)
    return copy
