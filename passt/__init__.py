"""User-mode networking for virtual machines (passt) and network namespaces (pasta).

Three rooms, each importing only from those after it: ``passt.userspace`` (translators,
services, command lines), ``passt.kernel`` (what is asked of or put into the kernel) and
``passt.syscalls`` (thin ctypes wrappers without policy).
"""

from passt import version

__version__ = version.VERSION

__all__ = ["__version__"]
