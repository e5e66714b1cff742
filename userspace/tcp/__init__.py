"""TCP: segments of the guest to sockets of the host and back, without payload buffers."""
