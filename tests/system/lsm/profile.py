"""Just enough of AppArmor's language to ask a profile whether it permits something.

The parser expands includes (``apparmor_parser -p``); here variables are expanded and globs become
regular expressions, as apparmor.d(5) says. Rules about files and mounts are understood, which is
what system call traces can be compared with.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

_VARIABLE = re.compile(r"^@\{(\w+)\}\s*(\+?)=\s*(.*)$")
_FILE = re.compile(r"^(?:(deny)\s+)?(?:owner\s+)?([/@]\S*)\s+([a-zA-Z]+),$")
_REFERENCE = re.compile(r"@\{(\w+)\}")


def preprocess(profile: Path, *folders: Path) -> list[str]:
    """The lines of *profile* with what it includes, from *folders* before the system's."""
    words = ["apparmor_parser", "-Q", "-p"]
    for folder in folders:
        words += ["-I", str(folder)]
    done = subprocess.run([*words, str(profile)], capture_output=True, text=True, check=True)
    lines = (line.strip() for line in done.stdout.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class Profile:
    """The rules of one profile."""

    def __init__(self, lines: list[str]) -> None:
        self._variables: dict[str, list[str]] = {"profile_name": ["test"]}
        self.mounts: list[str] = []
        #: Whether denied, expression, permissions.
        self._files: list[tuple[bool, re.Pattern[str], set[str]]] = []
        for line in lines:
            if match := _VARIABLE.match(line):
                name, more, words = match.groups()
                values = [word.strip('"') for word in words.split()]
                self._variables[name] = (self._variables[name] if more else []) + values
            elif line.startswith(("mount", "umount", "pivot_root", "remount")):
                self.mounts.append(line)
            elif match := _FILE.match(line):
                denied, pattern, permissions = match.groups()
                expressions = "|".join(map(expression, self._expand(pattern)))
                letters = {"x" if letter in "xX" else letter for letter in permissions}
                self._files.append((bool(denied), re.compile(expressions), letters))

    def permits(self, path: str, permissions: str) -> bool:
        """Whether *path* (with a slash at its end if it is a folder) can be had so."""
        granted: set[str] = set()
        for denied, pattern, letters in self._files:
            if pattern.fullmatch(path):
                if denied:
                    if letters & set(permissions):
                        return False
                else:
                    granted |= letters
        return set(permissions) <= granted

    def _expand(self, text: str) -> list[str]:
        """*text* for each combination of the values of its variables."""
        names = list(dict.fromkeys(_REFERENCE.findall(text)))
        if not names:
            return [re.sub("//+", "/", text)]
        expanded = []
        for values in itertools.product(*(self._variables[name] for name in names)):
            one = text
            for name, value in zip(names, values, strict=True):
                one = one.replace(f"@{{{name}}}", value)
            expanded += self._expand(one)
        return expanded


def expression(glob: str) -> str:
    """The regular expression of a glob without variables."""
    out = []
    depth = 0
    at = 0
    while at < len(glob):
        letter = glob[at]
        if glob.startswith("**", at):
            # At the end of a path, after a slash, there must be something.
            out.append(".+" if at and glob[at - 1] == "/" and at + 2 == len(glob) else ".*")
            at += 1
        elif letter == "*":
            last = at + 1 == len(glob) or glob[at + 1] == "/"
            out.append("[^/]+" if at and glob[at - 1] == "/" and last else "[^/]*")
        elif letter == "?":
            out.append("[^/]")
        elif letter == "{":
            out.append("(?:")
            depth += 1
        elif letter == "}":
            out.append(")")
            depth -= 1
        elif letter == "," and depth:
            out.append("|")
        elif letter == "[":
            end = glob.index("]", at)
            out.append(glob[at : end + 1])
            at = end
        else:
            out.append(re.escape(letter))
        at += 1
    return "(?:" + "".join(out) + ")"
