"""Benchmarks; ``python -m perf.compare --help``."""
