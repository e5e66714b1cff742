"""Reading the host's network and configuring the namespace, over rtnetlink.

Theory of operation
-------------------
All of it happens in one short-lived child, forked right at program start (`worker.Worker`).
Three reasons: the imports that compose messages overlap with those of the program and never
stay in the long-lived process; the child keeps the privileges and the network namespace it was
forked with, so it can read the host first and enter the target afterwards, which the program
itself cannot do in one thread; and lists of a hundred thousand routes live and die there.  The
two talk over a socket pair (`channel`); descriptors travel by SCM_RIGHTS.

    worker          the program's end: fork, calls, results as plain objects
    channel         framing and encoding between the two
    service         the child's end: state between calls, errors into one line
    route_socket    AF_NETLINK transport: sequence numbers, dumps, batches, errors
    attributes      type-length-value lists as bytes
    records         what is read of links, addresses and routes
    template        which host interface, address and gateway serve as template
    policy          default routes that only the host's routing rules lead to
    retarget        turning the host's address and route messages into the namespace's
    messages        composing new messages, with pyroute2
    namespace       loopback, MAC, MTU, addresses and routes, in the specified order
    tap             opening or attaching to the tap device
    neighbours      the host's neighbours, read by the program itself as long as it runs

Who encodes and who decodes: new messages are composed with pyroute2's message classes.
What the kernel reports is read by `records` straight from the bytes, since the template must be
known early and lists may be long (decoding one route with pyroute2 takes about as long as a
hundred here), and what is copied is copied as bytes with single attributes taken out or replaced
(`retarget`), so that attributes nobody here has heard of survive.

Sources: rtnetlink(7), netlink(7), Documentation/userspace-api/netlink/intro.rst, the headers
linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h.
"""
