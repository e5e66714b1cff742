"""Carriers of Ethernet frames to the guest: tap device, and later sockets and rings."""
