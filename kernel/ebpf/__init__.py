"""Loopback connections that the kernel forwards by itself: programs, maps, their loader.

:mod:`.layout` says what the program and user space share, ``verdict.bpf.c`` is the program,
``verdict.bpf`` its bytecode, :mod:`.bytecode` finds or makes the latter, :mod:`.maps` holds the
maps of an instance, :mod:`.probe` shows that they do what they should, :mod:`.pins` keeps sets of
maps for users who could not make them, :mod:`.acquire` chooses between the ways to get some.

And one listening socket for many ports: ``lookup.bpf.c``, :mod:`.lookup_layout`, :mod:`.lookup`,
:mod:`.lookup_probe`, in the same manner.
"""
