"""AppArmor profiles: the parser takes them, and they permit what the programs do.

Without AppArmor in the kernel what the programs do is taken from traces of their system calls and
compared with the rules (profile.py); with it, they are loaded and the programs run under them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.kit.machine import passt_command
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Program, forwarding
from tests.system.kit.users import User
from tests.system.lsm.profile import Profile, preprocess

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ours_only")]

FOLDER = Path(__file__).parents[3] / "kernel" / "lsm" / "apparmor"
NAMES = ("pasta", "passt", "pesto", "passt-repair")

ENABLED = Path("/sys/module/apparmor/parameters/enabled")


@pytest.fixture(scope="module", autouse=True)
def parser() -> None:
    if shutil.which("apparmor_parser") is None:
        pytest.skip("no apparmor_parser: run make tools")


@pytest.mark.parametrize("name", NAMES)
def test_parser_takes_it(name: str) -> None:
    words = ["apparmor_parser", "-Q", "-K", "-I", str(FOLDER), str(FOLDER / name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "interface file" not in line]
    assert (done.returncode, complaints) == (0, [])


def test_scripts_are_what_is_confined() -> None:
    """Not the interpreter: other programs in Python are none of our business."""
    for name in NAMES:
        text = (FOLDER / name).read_text()
        assert re.search(rf"^profile {name} @{{passt_bin}}/{name}( flags=\(\w+\))? {{$", text, re.M)
    assert "@{passt_bin}=/usr/bin /usr/local/bin\n" in (FOLDER / "tunables/passt").read_text()


def test_language() -> None:
    """Of the comparison itself."""
    rules = """
        @{A}=/x /y/
        @{A}+=/z
        /etc/{a,b}/*.so* mr,
        @{A}/** rw,
        deny /z/no** w,
        /proc/[0-9]*/ns/ r,
        /home/** pux,
    """
    profile = Profile([line.strip() for line in rules.splitlines()])
    assert profile.permits("/etc/a/lib.so.1", "m")
    assert not profile.permits("/etc/c/lib.so", "r")
    assert not profile.permits("/etc/a/b/lib.so", "r")
    assert profile.permits("/y/deep/down", "rw")
    assert not profile.permits("/x/", "r")
    assert profile.permits("/z/no", "r")
    assert not profile.permits("/z/nothing", "w")
    assert profile.permits("/proc/17/ns/", "r")
    assert not profile.permits("/proc/17/ns/net", "r")
    assert profile.permits("/home/user/bin/x", "x")


# What the programs do.


class Trace:
    """Opened files, executed ones, mounts: of pasta until a child of it becomes the command."""

    CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)$")

    def __init__(self, path: Path) -> None:
        #: Paths with permissions.
        self.files: set[tuple[str, str]] = set()
        self.mounts: set[str] = set()
        others: set[str] = set()
        begun = False
        # Calls that others interrupted are joined again.
        started: dict[str, str] = {}
        for line in path.read_text(errors="replace").splitlines():
            pid, _, rest = line.partition(" ")
            rest = rest.strip()
            if rest.endswith("<unfinished ...>"):
                started[pid] = rest.removesuffix("<unfinished ...>").rstrip()
                continue
            if match := re.match(r"<\.\.\. \w+ resumed>(.*)", rest):
                rest = started.pop(pid, "") + match[1].strip()
            match = self.CALL.match(f"{pid} {rest}")
            if match is None or pid in others or match[4].startswith("-"):
                continue
            name, arguments, result = match[2], match[3], match[5]
            if name == "execve":
                words = re.findall(r'"([^"]*)"', arguments)
                if begun:
                    self.files.add((words[0], "x"))
                    others.add(pid)
                elif words[0].endswith(("/pasta", "/passt")):
                    begun = True
            elif begun and name == "openat":
                self._open(pid, arguments, result)
            elif begun and name == "mmap" and "PROT_EXEC" in arguments:
                if match := re.search(r"\d+<(/[^>]*)>", arguments):
                    self.files.add((match[1], "m"))
            elif begun and name in ("mount", "umount2", "pivot_root"):
                self.mounts.add(f"{name}({arguments})")

    def _open(self, pid: str, arguments: str, result: str) -> None:
        if "O_PATH" in arguments:
            return  # no access, and not asked for
        match = re.search(r"^<([^>]*)>", result)
        if match is None or not match[1].startswith("/"):
            return
        path = match[1].removesuffix(" (deleted)")
        folder = "O_DIRECTORY" in arguments or os.path.isdir(path)
        write = "w" * ("O_WRONLY" in arguments or "O_RDWR" in arguments)
        read = "r" * ("O_WRONLY" not in arguments)
        self.files.add((path + "/" * folder, read + write))


@pytest.fixture(scope="module")
def environment(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile of pasta as it is for the environment that the program under test is in."""
    return profile_of("pasta", program, tmp_path_factory)


def profile_of(name: str, program: Program, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile ``name`` likewise."""
    tunables = tmp_path_factory.mktemp("apparmor") / "tunables"
    tunables.mkdir()
    script = Path(program.argv[0])
    base = os.path.realpath(script.parent / "python3") if script.parent.is_dir() else ""
    text = (FOLDER / "tunables" / "passt").read_text()
    text += f"@{{passt_env}}+={script.parents[1]}\n"
    for folder in {Path(os.path.realpath(base)).parents[1], Path(sysconfig.get_path("data"))}:
        text += f"@{{passt_env}}+={folder}\n"
    (tunables / "passt").write_text(text)
    return Profile(preprocess(FOLDER / name, tunables.parent, FOLDER))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder as users have them, for files of all kinds."""
    path = Path("/tmp") / f"passt-lsm-{os.getpid()}"
    path.mkdir()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ((), "exit 0"),
        (("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto"), "exit 0"),
        (("-l", "{}/log", "-p", "{}/pcap", "-c", "{}/control", "-P", "{}/pid"), "exit 0"),
        (("--no-pidns", "--trace"), "exit 0"),
        # Until the process that follows the host has its own root, and a while longer.
        ((), "until grep -q 'read_only' {}/trace; do sleep 0.2; done; sleep 1"),
    ],
    ids=["plain", "auto", "files", "without-pidns", "following"],
)
def test_what_pasta_does_is_permitted(
    program: Program,
    host: Netns,
    user: User,
    environment: Profile,
    place: Path,
    options: tuple[str, ...],
    command: str,
) -> None:
    words = forwarding([option.format(place) for option in options])
    command = command.format(place).replace("read_only", FOLLOWERS_ROOT)
    calls = "trace=openat,execve,mmap,mount,umount2,pivot_root"
    output = place / "trace"
    strace = ["strace", "-f", "-y", "-s", "500", "-e", calls, "-o", str(output)]
    host.run(
        [*strace, *program.argv, *words, "--config-net", "--", "/bin/sh", "-c", command],
        prefix=user.prefix,
        timeout=60,
    )
    trace = Trace(output)
    assert len(trace.files) > 50
    refused = {entry for entry in trace.files if not environment.permits(*entry)}
    assert not refused
    assert ("/bin/sh", "x") in trace.files or ("/usr/bin/sh", "x") in trace.files
    rules = {call: MOUNTS.get(call) or rule_of_view(call) for call in trace.mounts}
    assert not {call for call, rule in rules.items() if not rule}
    assert set(rules.values()) <= set(environment.mounts)


def test_joining_a_namespace_is_permitted(
    program: Program, host: Netns, user: User, environment: Profile, place: Path
) -> None:
    """That of another process, until that is gone."""
    output = place / "trace"
    words = [*program.argv, *forwarding(()), "-f", "--config-net"]
    script = f"""
        unshare --user --map-root-user --net sleep 2 &
        pid=$!
        until grep -q "^ *0 " /proc/$pid/uid_map; do sleep 0.1; done
        exec strace -f -y -s 500 -e trace=openat,execve,mmap -o {output} {shlex.join(words)} $pid
    """
    host.run(["sh", "-c", script], prefix=user.prefix, timeout=60)
    trace = Trace(output)
    assert any(re.search(r"^/proc/\d+/ns/|^net:", path) for path, _ in trace.files)
    assert not {entry for entry in trace.files if not environment.permits(*entry)}


def test_what_passt_does_is_permitted(
    program: Program,
    host: Netns,
    user: User,
    tmp_path_factory: pytest.TempPathFactory,
    place: Path,
) -> None:
    """Up to the end of its guest, who is at the other end of a descriptor, then of a socket."""
    permitted = profile_of("passt", program, tmp_path_factory)
    words = shlex.join(
        [*passt_command(program), "-f", "-1", "-t", "7001", "-c", f"{place}/control"]
    )
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect('{place}/s')"
    guest = f'until python3 -c "{connect}" 2>/dev/null; do sleep 0.1; done'
    script = f"""
        strace -f -y -s 500 -e trace=openat,execve,mmap,mount,umount2,pivot_root \\
            -o {place}/trace {words} -s {place}/s -l {place}/log -p {place}/pcap -P {place}/pid &
        {guest}
        wait $!
    """
    host.run(["sh", "-c", script], prefix=user.prefix, timeout=60)
    trace = Trace(place / "trace")
    assert len(trace.files) > 50
    assert not {entry for entry in trace.files if not permitted.permits(*entry)}
    rules = {call: MOUNTS.get(call, "") for call in trace.mounts}
    assert all(rules.values()), rules
    assert set(rules.values()) <= set(permitted.mounts)


#: What shows in a trace that the root of the follower is ready.
FOLLOWERS_ROOT = 'mount(NULL, "/tmp", NULL'


def rule_of_view(call: str) -> str:
    """The rule for a mount of the follower's: a directory at its place, or making it read-only."""
    safe = "MS_RDONLY|MS_NOSUID|MS_NODEV|MS_NOEXEC|MS_REMOUNT|MS_BIND"
    if re.fullmatch(rf'mount\(NULL, "/tmp[^"]*", NULL, {re.escape(safe)}, NULL\)', call):
        return "remount options=(ro, nosuid, nodev, noexec, bind) /tmp/{,**},"
    match = re.fullmatch(r'mount\("([^"]*)", "/tmp([^"]*)", NULL, MS_BIND\|MS_REC, NULL\)', call)
    if match is None or match[1] != match[2]:
        return ""
    if match[1] == "/etc":
        return "mount options=(rw, rbind) /etc/ -> /tmp/etc/,"
    return "mount options=(rw, rbind) @{run}/** -> /tmp/run/**," * match[1].startswith("/run/")


#: Calls, and the rules that are for them.
MOUNTS = {
    'mount(NULL, "/", NULL, MS_REC|MS_UNBINDABLE, NULL)': ("mount options=(rw, runbindable) -> /,"),
    'mount(NULL, "/", NULL, MS_REC|MS_SLAVE, NULL)': "mount options=(rw, rslave) -> /,",
    'mount("proc", "/proc", "proc", MS_NOSUID|MS_NODEV|MS_NOEXEC, NULL)': (
        "mount fstype=proc options=(rw, nosuid, nodev, noexec) proc -> /proc/,"
    ),
    'mount("tmpfs", "/tmp", "tmpfs", MS_RDONLY|MS_NOSUID|MS_NODEV|MS_NOEXEC, '
    '"nr_inodes=2,nr_blocks=0")': (
        "mount fstype=tmpfs options=(ro, nosuid, nodev, noexec) tmpfs -> /tmp/,"
    ),
    'mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID|MS_NODEV|MS_NOEXEC, '
    '"nr_inodes=64,size=64k,mode=755")': (
        "mount fstype=tmpfs options=(rw, nosuid, nodev, noexec) tmpfs -> /tmp/,"
    ),
    'pivot_root(".", ".")': "pivot_root oldroot=/tmp/ /tmp/,",
    'umount2(".", MNT_DETACH|UMOUNT_NOFOLLOW)': "umount /,",
}


# Where the kernel can do it.


@pytest.fixture
def loaded(program: Program, tmp_path: Path) -> Iterator[str]:
    """The name of a copy of pasta's profile, attached to nothing, that is in force."""
    if not ENABLED.exists() or ENABLED.read_text().strip() != "Y":
        pytest.skip("no AppArmor in this kernel")
    name = f"passt-test-{os.getpid()}"
    shutil.copytree(FOLDER, tmp_path / "apparmor")
    folder = tmp_path / "apparmor"
    with open(folder / "tunables" / "passt", "a") as file:
        file.write(f"@{{passt_env}}+={Path(program.argv[0]).parents[1]}\n")
    text = (
        (folder / "pasta")
        .read_text()
        .replace("profile pasta @{passt_bin}/pasta", f"profile {name}")
    )
    (folder / name).write_text(text)
    words = ["apparmor_parser", "-K", "-I", str(folder)]
    subprocess.run([*words, "-r", str(folder / name)], check=True)
    yield name
    subprocess.run([*words, "-R", str(folder / name)], check=True)


def test_pasta_runs_under_it(program: Program, host: Netns, user: User, loaded: str) -> None:
    words = ["aa-exec", "-p", loaded, "--", *program.argv, *forwarding(()), "--config-net", "--"]
    done = host.run(
        [*words, "/bin/sh", "-c", "ip -o addr; exit 3"], prefix=user.prefix, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "eth0" in done.stdout


def test_nothing_else_is_permitted(program: Program, host: Netns, loaded: str) -> None:
    """Not even for root, who is confined like anybody."""
    python = str(Path(program.argv[0]).parent / "python3")
    attempt = "import os; print(os.path.exists('/root')); open('/etc/shadow')"
    words = ["aa-exec", "-p", loaded, "--", python, "-c", attempt]
    done = host.run(words, check=False)
    assert done.returncode != 0
    assert "PermissionError" in done.stderr
