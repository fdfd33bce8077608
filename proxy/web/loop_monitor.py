"""Measures how long work waits for its turn on the event loop."""

import asyncio
from collections import deque
from typing import Final

from proxy.runtime.metrics import Metrics

EVERY: Final = 0.1
"""Seconds between two looks."""

LOOKS: Final = 150
"""So many looks back the gauge shows the longest: as long as most scrape."""


async def watch(metrics: Metrics) -> None:
    """Keep ``metrics.loop_lag`` current, in seconds, until cancelled."""
    loop = asyncio.get_running_loop()
    lags: deque[float] = deque(maxlen=LOOKS)
    while True:
        due = loop.time() + EVERY
        await asyncio.sleep(EVERY)
        lags.append(max(0.0, loop.time() - due))
        metrics.loop_lag = max(lags)
