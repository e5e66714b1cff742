"""The performance suite: ``python -m perf --help``, as root, from the root of the tree.

Theory of operation. A *subject* is a way to connect a guest with its host: our pasta in any mode,
another program, or nothing at all (loopback, a veth pair), which is what the machine can do. A
*case* is one measurement. Rounds are interleaved: for each case one subject after the other, then
the next case, and all of it again. Whatever else happens on the machine so meets all subjects
alike, and only ratios of the same round are compared: absolute figures of different runs never are.

===============  =================================================================================
``metrics``      what is measured: units, which direction is better
``results``      what a run leaves: JSON with a version
``statistic``    medians, spread, paired ratios, the sign test
``facts``        what the figures depend on: kernel, processor, congestion control, offloads
``sampling``     processor time and system calls of a subject
``lab``          the networks, the user, folders; and that nothing of it stays
``subjects``     the command lines that are compared, and instances of them
``cases``        the measurements by name, and sets of them
``loads``        programs that make traffic
``rounds``       carries it all out
``progress``     what is shown meanwhile
``table``        results as text: for terminals, and Markdown
``report``       plots and the HTML page
``gate``         whether a change made something slower
``cli``          the commands
===============  =================================================================================

Programs of their own, for single questions: ``python -m perf.ranges`` (many forwarded ports) and
``python -m perf.laptop`` (networks that come and go).
"""
