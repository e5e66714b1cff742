"""Translators between layer 2 and sockets, the services beside them, and command lines."""
