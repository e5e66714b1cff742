"""Flows: the table of what is being forwarded, address translation, and rules."""
