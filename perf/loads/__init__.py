"""Programs that make traffic: iperf3 for bulk, and small ones of our own for everything else.

Ours run with the system's interpreter, in the reach of the ordinary user, as programs of their own
in the namespaces where the ends of a connection are.  That they are not what is measured can be
seen in the subject *direct*, which is the load alone; the cases ``loads/…`` compare them with
sockperf, which is written in C++, where that is installed.
"""

from __future__ import annotations

import os

PYTHON = "/usr/bin/python3"  # in the reach of the ordinary user
_HERE = os.path.dirname(os.path.abspath(__file__))
EXCHANGE = [PYTHON, "-S", os.path.join(_HERE, "exchange.py")]
IDLE = [PYTHON, "-S", os.path.join(_HERE, "idle.py")]
