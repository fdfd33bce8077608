"""Counts of pulls and bytes by image: updated on every request, and collected periodically."""

from collections import Counter
from typing import Any, Final

from proxy.core.names import Repo, Target
from proxy.core.tolerant_json import as_list

MAX_KEYS: Final = 20_000
"""Maximum number of keys until the counts are collected."""

Key = tuple[Target, str]
"""A repository with a tag or digest counts pulls; with "" it counts bytes of blobs."""


class Tally:
    """Counts by ``Key``. A hit adds to ``counts`` itself: that is one operation of a dict."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()

    def add(self, key: Key, amount: int) -> None:
        """Count, unless there are too many keys."""
        if key in self.counts or len(self.counts) < MAX_KEYS:
            self.counts[key] += amount

    def drain(self) -> Counter[Key]:
        """Return the counts, and begin at zero."""
        counts, self.counts = self.counts, Counter()
        return counts

    def to_json(self) -> list[list[Any]]:
        """Return the counts as JSON values, and begin at zero."""
        return [[*target, ref, count] for (target, ref), count in self.drain().items() if count]

    def add_json(self, rows: object) -> None:
        """Add what ``to_json`` returned in another process."""
        for row in as_list(rows):
            upstream, repo, ref, count = as_list(row)
            self.add((Target(str(upstream), Repo(str(repo))), str(ref)), int(str(count)))
