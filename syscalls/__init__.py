"""Thin ctypes wrappers around kernel interfaces: one file each, no policy, no retries."""
