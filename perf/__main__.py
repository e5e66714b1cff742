"""``python -m perf``."""

from __future__ import annotations

import sys

from perf.cli import main

sys.exit(main())
