"""Which system calls the running program may make, and why each of them.

* :mod:`.groups` is the list: calls in groups, each with its reason, and with conditions on its
  arguments where these matter.
* :mod:`.profile` puts groups together to the profile of a mode, as text and as a filter.
* :mod:`.document` writes ``docs/seccomp.md`` from the list.

The filter is in force from the moment at which everything is in place; until then the program
makes many more calls.  What is not on the list ends the process by SIGSYS, which the kernel
logs (``type=1326 … sig=31 … syscall=N``).

Whoever adds a call to the program must add it here; tests find out soon, as all of tests/system
run under the filter.
"""
