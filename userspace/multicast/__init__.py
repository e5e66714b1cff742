"""Multicast of the guest: what it sends to groups, and what it listens to.

See docs/multicast.md for what works and why in this way.  The parts:

    policy       which groups there is anything to do for, and their well-known ports
    sockets      sockets of the host that send to a group, or receive what is sent to one
    filters      what the guest listens to in one group, as its reports say (IGMP, MLD)

and the layers of the translator, each a class on top of the one before, the first on that of UDP:

    sending      flows to groups
    members      sockets that receive from groups, and what arrives there
    translator   reports, which make members and end them
"""
