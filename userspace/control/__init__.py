"""Changing the forwarding rules of a running pasta or passt.

================  ==================================================================
``protocol``      what both sides say, as bytes
``server``        the side of pasta and passt: one client at a time, never waiting
``path``          the socket in the file system that clients connect to
``client``        the side of pesto(1), which may wait
``edit``          what the options of pesto do to a copy of the tables
``show``          tables as text for people and as JSON for programs
``options``       the option table of pesto, and the reading of its command line
``manpage``       the manual page made from that table
================  ==================================================================
"""
