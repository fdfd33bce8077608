"""Measures the delay of the event loop."""

import asyncio
from collections import deque
from typing import Final

from proxy.runtime.metrics import Metrics

EVERY: Final = 0.1
"""Seconds between two measurements."""

MEASUREMENTS: Final = 150
"""The gauge shows the longest delay of this many measurements: 15 seconds, a scrape interval."""


async def watch(metrics: Metrics) -> None:
    """Keep ``metrics.process.loop_lag`` up to date, in seconds, until cancelled."""
    loop = asyncio.get_running_loop()
    lags: deque[float] = deque(maxlen=MEASUREMENTS)
    while True:
        due = loop.time() + EVERY
        await asyncio.sleep(EVERY)
        lags.append(max(0.0, loop.time() - due))
        metrics.process.loop_lag = max(lags)
