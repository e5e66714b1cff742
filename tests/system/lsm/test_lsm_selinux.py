"""SELinux policy modules: they compile, make packages, and label scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

FOLDER = Path(__file__).parents[3] / "kernel" / "lsm" / "selinux"
PROGRAMS = {"passt": "passt", "pasta": "pasta", "pesto": "pesto", "passt_repair": "passt-repair"}
MODULES = (*PROGRAMS, "passt_userns", "pasta_accel")


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    for tool in ("checkmodule", "semodule_package"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: run make tools")


def compile_module(source: Path, folder: Path) -> Path:
    """The compiled module; AssertionError with what the compiler says."""
    target = folder / f"{source.stem}.mod"
    words = ["checkmodule", "-M", "-m", "-o", str(target), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return target


@pytest.mark.parametrize("name", MODULES)
def test_module_becomes_a_package(name: str, tmp_path: Path) -> None:
    module = compile_module(FOLDER / f"{name}.te", tmp_path)
    package = tmp_path / f"{name}.pp"
    words = ["semodule_package", "-o", str(package), "-m", str(module)]
    contexts = FOLDER / f"{name}.fc"
    if name in PROGRAMS:
        words += ["-f", str(contexts)]
    subprocess.run(words, check=True)
    assert package.stat().st_size > module.stat().st_size
    if name in PROGRAMS:
        unpacked = tmp_path / "contexts"
        words = ["semodule_unpackage", str(package), str(tmp_path / "again"), str(unpacked)]
        subprocess.run(words, check=True)
        assert unpacked.read_bytes().rstrip(b"\0") == contexts.read_bytes()


def test_compiler_would_complain(tmp_path: Path) -> None:
    """Of a type that nobody declares: the tests above can fail."""
    text = (FOLDER / "pesto.te").read_text()
    source = tmp_path / "pesto.te"
    source.write_text(text.replace("type locale_t;\n", ""))
    with pytest.raises(AssertionError):
        compile_module(source, tmp_path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_scripts_are_labelled_and_the_interpreter_is_not(name: str) -> None:
    lines = (FOLDER / f"{name}.fc").read_text().splitlines()
    for line in lines:
        path, kind, context = line.split("\t")
        assert path.endswith(f"/bin/{PROGRAMS[name]}")
        assert (kind, context) == ("--", f"system_u:object_r:{name}_exec_t:s0")
    text = (FOLDER / f"{name}.te").read_text()
    entries = re.findall(rf"^allow {name}_t (\S+):file {{[^}}]*entrypoint", text, re.M)
    assert entries == [f"{name}_exec_t"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_domains_are_what_roles_may_have(name: str) -> None:
    text = (FOLDER / f"{name}.te").read_text()
    for role in ("system_r", "unconfined_r"):
        assert f"role {role} types {name}_t;\n" in text
    assert f"type_transition unconfined_t {name}_exec_t:process {name}_t;\n" in text


#: What the reference policy has of macros, as far as the interfaces use them.
MACROS = r"""
define(`interface', `$2')
define(`gen_require', `require { attribute domain; type caller_t;
    class file { execute getattr map open read }; class dir { getattr open read search };
    class fd use; class fifo_file { read write }; class lnk_file { getattr read };
    class process { transition sigchld signal sigkill }; class sock_file { getattr write };
    class unix_stream_socket connectto; $1 }')
define(`domtrans_pattern', `type_transition $1 $2:process $3;
    allow $1 $2:file { execute getattr map open read };
    allow $1 $3:process transition; allow $3 $1:process sigchld;')
"""


@pytest.mark.parametrize("name", ["passt", "pasta"])
def test_interfaces(name: str, tmp_path: Path) -> None:
    """Each of them makes rules that compile, for a domain that uses it."""
    if shutil.which("m4") is None:
        pytest.skip("no m4: run make tools")
    text = (FOLDER / f"{name}.if").read_text()
    names = re.findall(r"^interface\(`(\w+)',`$", text, re.M)
    assert len(names) == 2
    assert all(each.startswith(f"{name}_") for each in names)
    # An interface is a macro of its own.
    text = re.sub(r"^interface\(`(\w+)',`$", r"define(`\1',`", text, flags=re.M)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    calls = "\n".join(f"{each}(caller_t)" for each in names)
    done = subprocess.run(
        ["m4"], input=f"{MACROS}{text}\n{calls}\n", capture_output=True, text=True, check=True
    )
    source = tmp_path / "uses.te"
    source.write_text(f"module uses 1.0;\n{done.stdout}")
    compile_module(source, tmp_path)
