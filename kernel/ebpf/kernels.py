"""Which kernels can be trusted with sockets in maps, as far as their version tells.

:mod:`.probe` has the last word about everything that shows when one tries.  Two things do not: what
takes an unlucky moment, and what brings the machine down.  For these there is a table.

**Too old.**  Until 6.4, a receiver's TCP did not count what left by way of a map (``copied_seq``),
so its window could close for good; data that arrived before the socket entered the map waited for
more to come; and a full queue lost its order.  All that was mended in one series, in 6.4-rc4:
commits e5c6de5fa025, ea444185a6bf, 405df89dd52c, 29173d07f794.

**Known to be broken.**  From then on until the middle of 2025, on what is our way:

* data that is passed may have to wait for memory; the kernel's worker then stops the machine
  (``BUG_ON(skb_shared)``) if it is in too many pieces: CVE-2025-38165, commit 5ca2e29f6834;
* a socket that is closed while a worker sends through it is used after it was freed:
  CVE-2025-38154, commit 8259eb0e06d8 (only since 6.6.35 and 6.9.6);
* what did not fit into a send buffer was sent twice: commit 3b4f14b79428.

The releases that have all of these are 6.6.94, 6.12.34, 6.15.3 and 6.16, says the record of the
first (CVEProject/cvelistV5; osv.dev); lines of kernels that ended before then never got them.
Distributions may have mended theirs without telling by the version: those are refused as well.

**Not our concern**, though much written about: sockets in a map without a program for what they
receive report nothing to read, since 6.6.128, 6.12.75 and 6.18.14 (929e30f93125, mended by
04af4efde58a); ours have one.  Data redirected to the *receiving* side of a socket shifted its
sequence numbers until 6.19: we redirect to the sending side.  splice(2) does not see what a map has
passed: nobody splices from a socket in a map.  An end of file is mistaken for a failed
transmission, and data that were sent again with other bounds are given to the program twice: to
the present day, and the program copes (``verdict.bpf.c``).
"""

from __future__ import annotations

#: The first kernel that can do it.
OLDEST = (6, 4, 0)

#: From this release on, to before that one: known to be broken.
BROKEN = (
    ((6, 4, 0), (6, 6, 94)),
    ((6, 7, 0), (6, 12, 34)),
    ((6, 13, 0), (6, 15, 3)),
)
_WHY = "its maps of sockets are broken (CVE-2025-38165)"


def too_old(release: str) -> str:
    """Why a kernel is too old for all of this; empty if it is not."""
    if version(release) < OLDEST:
        return f"kernel too old: {release}, at least {_text(OLDEST[:2])} needed"
    return ""


def objection(release: str) -> str:
    """Why a kernel cannot be used, by its release as of uname(2); empty if nothing is known."""
    objection = too_old(release)
    if objection:
        return objection
    number = version(release)
    for first, mended in BROKEN:
        if first <= number < mended:
            return f"kernel {release}: {_WHY}, mended in {_text(mended)}"
    return ""


def version(release: str) -> tuple[int, int, int]:
    """The three numbers of a release: ``6.12.43+deb13-amd64`` is (6, 12, 43)."""
    numbers = []
    for part in release.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits) if digits else 0)
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return major, minor, patch


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)
