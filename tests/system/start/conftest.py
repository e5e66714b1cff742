"""Fixtures of these tests: pasta as run by root, by an ordinary user, by each."""

from __future__ import annotations

import pytest

from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Program
from tests.system.kit.users import User
from tests.system.start.runner import Runner


@pytest.fixture
def root_pasta(program: Program, host: Netns) -> Runner:
    """Pasta run by root of the machine."""
    return Runner(program, host, [], 0)


@pytest.fixture
def user_pasta(program: Program, host: Netns, user: User) -> Runner:
    """Pasta run by an ordinary user."""
    return Runner(program, host, user.prefix, user.uid)


@pytest.fixture(params=["root", "user"])
def pasta(request: pytest.FixtureRequest, root_pasta: Runner, user_pasta: Runner) -> Runner:
    """Pasta run by either: the test runs for both."""
    return root_pasta if request.param == "root" else user_pasta
