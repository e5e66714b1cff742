"""Following the host's network: a small process that watches it and keeps the namespace in step.

Theory of operation
-------------------
The running program can change nothing in the namespace: it gave up its privileges, and its
system call filter knows no new netlink sockets.  So one more process is forked while that is
still possible, the *follower*.  It listens to the host's kernel and to the host's resolv.conf,
and holds a netlink socket in the namespace, with CAP_NET_ADMIN there and nothing else::

    host's kernel ── events, dumps ──►┌──────────┐── addresses, routes ──► namespace's kernel
    /etc (read only) ── inotify ─────►│ follower │── what is now so ─────► the program
                                      └──────────┘◄─ "go", end of file ──

Nothing that a guest or a peer sends ever gets there: the program tells it to begin, and no more.

    start       the program's end: fork, and the channel
    helper      the process: its sandbox, then waiting and reconciling
    confine     the root with a few directories, capabilities, system calls
    monitor     events of the host's kernel, as far as they mean a change
    host        what the host's network looks like now
    settle      whether a change counts at once, or may pass by itself
    pace        when to look after an event
    difference  from what we set and what is to be there to what has to be done
    apply       doing it
    resolver    the host's resolv.conf

The order that loses nothing: the monitor subscribes first, then everything is read and compared
with what the namespace was given at start.  From then on each event that means something leads to
a new reading; what changed follows from comparing, never from the event.

Sources: rtnetlink(7), netlink(7), inotify(7), user_namespaces(7).
"""
