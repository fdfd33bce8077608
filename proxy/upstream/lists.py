"""Limits for the lists of an upstream: bytes, values and pages.

A hostile registry could add pages without end, or pack millions of small values into one. Parsing
holds the interpreter until it ends, so each page is measured before it is parsed.
"""

from typing import Final

from proxy.core.errors import UpstreamUnavailable
from proxy.core.tolerant_json import read_large_object

MAX_BYTES: Final = 8 * 1024 * 1024
"""Of one page of tags, and of all pages of a list of referrers together."""

MAX_PAGES: Final = 100
MAX_TAGS: Final = 200_000
MAX_REFERRERS: Final = 10_000
_MAX_CONTAINERS: Final = 100_000
"""Arrays and objects of a page. The tag lists of Google's registries have two per manifest."""

_MAX_VALUES: Final = 500_000


class Bounds:
    """The bytes and pages that remain for one list. ``name`` and ``what`` go into errors."""

    def __init__(self, name: str, what: str) -> None:
        self._list = f"{name}: the list of {what}"
        self._pages = MAX_PAGES
        self.bytes_left = MAX_BYTES

    def page(self, body: bytes | None) -> dict[str, object]:
        """Return a parsed page; ``body`` is None if it exceeded ``bytes_left``.

        Raises ``UpstreamUnavailable`` when the list exceeds a bound.
        """
        if body is None:
            raise UpstreamUnavailable(f"{self._list} is larger than {MAX_BYTES} bytes")
        if self._pages == 0:
            raise UpstreamUnavailable(f"{self._list} has more than {MAX_PAGES} pages")
        self._pages -= 1
        self.bytes_left -= len(body)
        containers = body.count(b"[") + body.count(b"{")
        if containers > _MAX_CONTAINERS or body.count(b",") > _MAX_VALUES:
            raise UpstreamUnavailable(f"{self._list} has too many values on one page")
        return read_large_object(body)

    def count(self, entries: int, most: int) -> None:
        """Raise ``UpstreamUnavailable`` when there are more than ``most`` entries."""
        if entries > most:
            raise UpstreamUnavailable(f"{self._list} has more than {most} entries")
