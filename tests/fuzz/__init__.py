"""Fuzzing: every parser that faces a guest, a control socket or a file, fed with the worst.

A *harness* is a module with a function ``one(data: bytes) -> None``.  It does whatever the
bytes say, checks what must hold whatever they say, and raises if it does not: AssertionError
for a violated invariant, anything else for a crash.  It keeps nothing from one call to the
next that could change what the next one does.  So the same function serves

* the replay of the corpora (:mod:`tests.fuzz.test_corpus`), part of every test run,
* our own mutation fuzzer (:mod:`tests.fuzz.engine`), which needs nothing but Python,
* atheris (:mod:`tests.fuzz.guided`), libFuzzer for Python, where it is installed.

``python -m tests.fuzz`` is the command line, docs/fuzzing.md the guide.
"""
