"""System tests: real namespaces and real programs; root is required (``pytest -m system``)."""
