"""Listening sockets for forwarding rules: which ports are open, and when.

* :mod:`~passt.userspace.forward.forwarder` owns tables and sockets, and keeps them in step;
* :mod:`~passt.userspace.forward.side` has the sockets of one side, host or namespace;
* :mod:`~passt.userspace.forward.lookup` has one socket for many ports, :mod:`.gates` what it takes;
* :mod:`~passt.userspace.forward.sockets` says how the sockets of a rule are made;
* :mod:`~passt.userspace.forward.scan` reads which ports others listen on;
* :mod:`~passt.userspace.forward.auto` decides what automatic rules make of that;
* :mod:`~passt.userspace.forward.portset` has sets of ports as integers.

What happens on the sockets is not known here: each is handed to the translator of its
protocol as soon as there is a loop, and taken back to be closed.
"""
