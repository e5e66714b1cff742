"""A short campaign with every harness, the same each time: FUZZ_SMOKE seconds altogether.

More, and other inputs each time: ``make fuzz SECONDS=600``.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.catalogue import NAMES, Harness
from tests.fuzz.engine import Campaign, shorten

#: Seconds for all; the whole loop has its own share, see tests/system/test_fuzz_loop.py.
TOTAL = float(os.environ.get("FUZZ_SMOKE", "36"))

#: What is large gets more of them.
WEIGHTS = {"stack": 5, "tcp": 4, "reports": 2}

SEED = 20251128


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name: str) -> None:
    harness = Harness(name)
    campaign = Campaign(harness, harness.corpus(), SEED)
    campaign.run(TOTAL * WEIGHTS.get(name, 1) / sum(WEIGHTS.get(each, 1) for each in NAMES))
    assert campaign.executions > len(harness.corpus()), "nothing but the corpus was tried"
    for find in campaign.finds:
        short = shorten(harness, find)
        pytest.fail(f"{short.text}\ninput: {short.data.hex()}", pytrace=False)
