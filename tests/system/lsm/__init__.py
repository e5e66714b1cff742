"""Profiles for AppArmor and SELinux: whether they are sound, and whether they suffice."""
