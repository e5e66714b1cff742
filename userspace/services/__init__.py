"""What the guest is told about its network: address resolution and configuration.

A service gets a request as bytes and returns the complete frame of the answer, or ``None``;
it knows neither sockets nor flows nor the link.
"""
