"""Tests of starting and ending: modes, users, background, quit watch."""
