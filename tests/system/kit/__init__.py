"""Kit for the system tests: namespaces, topologies, programs under test, real and raw peers.

The tests hold the strings themselves: a test process (root) opens sockets *in any namespace* of the
topology through :class:`netns.Netns`, so that one Python function sees both ends of a
connection, and starts real programs there where a real program is the point of the test.

=============  =================================================================================
``netns``      network namespaces: commands, processes, sockets and sysctls in them
``topology``   *host*, *remote* and *far* namespaces joined by veth pairs, and their variants
``users``      the ordinary user of the tests, and a copy of the package it may read
``pasta``      the program under test, and running instances of it
``paths``      the ways a connection can take through pasta, each with both ends in hand
``stream``     reproducible content with hashes, for sockets and files
``servers``    nginx, dnsmasq and iperf3 in a namespace
``wire``       an Ethernet wire with loss, delay, jitter, duplication, reordering, rate
``wiredguest`` a guest behind such a wire, so that it is pasta that meets the faults
``offload``    what a network card does for superframes: segmentation and checksums
``rawguest``   the guest's side of the tap device, frame by frame
``rawtcp``     a hand-driven TCP endpoint on top of that
=============  =================================================================================
"""
