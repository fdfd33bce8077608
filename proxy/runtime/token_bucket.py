"""A token bucket that may be in debt: a caller reserves tokens, and learns how long to wait.

Reservations keep waiters in order: each one is due when the bucket has paid back the debt of all
before it, so no task has to wake another.
"""


class TokenBucket:
    """Tokens that come back at ``rate`` per second, up to ``burst``; it begins full.

    Times are in seconds of any clock that does not go back.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, count: float, now: float) -> float:
        """Take tokens, in advance if needed; return the seconds until they are available."""
        self._refill(now)
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)

    def seconds_until(self, count: float, now: float) -> float:
        """Return the result of ``take`` without taking tokens."""
        self._refill(now)
        return max(0.0, (count - self._tokens) / self._rate)

    def refund(self, count: float) -> None:
        """Return tokens that were taken and not used."""
        self._tokens = min(self._burst, self._tokens + count)

    def is_full(self, now: float) -> bool:
        """Return True if the past no longer matters: a new bucket would be the same."""
        self._refill(now)
        return self._tokens >= self._burst

    def change(self, rate: float, burst: float, now: float) -> None:
        """Use another rate and burst from now on; a debt stays."""
        self._refill(now)
        self._rate, self._burst = rate, burst

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
