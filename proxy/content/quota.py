"""How much the cache may hold."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may be held: ``max_size`` in bytes, of which the marks are shares, 0 to 1.

    ``min_free`` bytes of the file system are left to others. ``max_age`` is for how many seconds
    content may go unused. ``unproven_share`` (0 to 1) of what is held may be evicted for the
    unproven downloads of one upstream.
    """

    max_size: int
    high_mark: float = 1.0
    low_mark: float = 1.0
    min_free: int = 0
    max_age: float = float("inf")
    unproven_share: float = 1.0
