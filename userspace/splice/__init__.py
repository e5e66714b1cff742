"""The loopback bypass: connections between namespaces that never touch the link."""
