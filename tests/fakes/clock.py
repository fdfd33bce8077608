"""A clock that moves only when a test moves it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Clock:
    """Seconds since the epoch; call it wherever `time.time` is expected."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`; going back is what no real clock promises, so refuse it."""
        if seconds < 0:
            raise ValueError("a clock only moves forward")
        self.now += seconds
