"""Parsers for the response headers of an upstream. Pure.

The sender may be hostile. Each parser bounds its input, uses possessive patterns (``++``, which
never give a character back) and moves only forward, so its time is linear in the input.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import chain, islice
from time import time
from typing import Final, NamedTuple

MAX_CHALLENGE_LINES: Final = 16
MAX_CHALLENGE: Final = 16 * 1024
"""Characters of all ``WWW-Authenticate`` lines. The line that exceeds it and later ones are
ignored."""

MAX_CHALLENGES: Final = 16
MAX_PARAMETERS: Final = 32
"""Parameters of one challenge. Further ones are ignored."""

MAX_LINK_LINES: Final = 8
MAX_LINK: Final = 16 * 1024
"""Characters of all ``Link`` lines. The line that exceeds it and later ones are ignored."""

MAX_RETRY_AFTER: Final = 24 * 3600.0
MAX_DATE: Final = 64

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]++")
_EQUALS = re.compile(r"\s*+=\s*+")
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"')
_BARE = re.compile(r'[^\s,"]*+')
_SEPARATOR = re.compile(r"[\s,]*+")
_JUNK = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|[^\s,"]++')
_ESCAPE = re.compile(r"\\(.)")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_LINK = re.compile(r"[\s,]*+<([^>]*+)>((?:[^,\"]++|\"[^\"]*+\"?+)*+)")
_RELATION = re.compile(r";\s*+rel\s*+=\s*+(?:\"([^\"]*+)\"|([^\s\";,]++))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge. The scheme and the names of the parameters are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


MAX_WARNING: Final = 1024


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """Return the challenges of all ``WWW-Authenticate`` lines in order (RFC 9110 §11.6.1).

    Text that is not a challenge is skipped, and the constants above limit the input.
    """
    bounded = _bounded(lines, MAX_CHALLENGE_LINES, MAX_CHALLENGE)
    return list(islice(chain.from_iterable(map(_challenges, bounded)), MAX_CHALLENGES))


def _bounded(lines: Iterable[str], most: int, characters: int) -> Iterator[str]:
    """Yield the first ``most`` lines, up to the one that exceeds ``characters`` in all."""
    for line in islice(lines, most):
        characters -= len(line)
        if characters < 0:
            return
        yield line


def _challenges(line: str) -> Iterator[Challenge]:
    """Yield the challenges of one line.

    The comma separates challenges as well as parameters, so each position has three cases: a
    parameter of the current challenge, the scheme of the next one, or junk, which is skipped up
    to the next separator.
    """
    scheme: str | None = None
    parameters: dict[str, str] = {}
    position = _end(_SEPARATOR, line, 0)
    while position < len(line):
        word = _TOKEN.match(line, position)
        equals = word and _EQUALS.match(line, word.end())
        after = line[word.end() : word.end() + 1] if word else ""
        if word and equals and scheme is not None:
            text, position = _value(line, equals.end())
            if text is not None and len(parameters) < MAX_PARAMETERS:
                parameters.setdefault(word[0].lower(), text)
        elif word and (after in ("", ",") or after.isspace()):
            if scheme is not None:
                yield Challenge(scheme, parameters)
            scheme, parameters, position = word[0].lower(), {}, word.end()
        else:
            position = _end(_JUNK, line, position)
        position = _end(_SEPARATOR, line, position)
    if scheme is not None:
        yield Challenge(scheme, parameters)


def _value(line: str, position: int) -> tuple[str | None, int]:
    """Return the value of a parameter, None if its quote is not closed, and where it ends."""
    if not line.startswith('"', position):
        end = _end(_BARE, line, position)
        return line[position:end], end
    quoted = _QUOTED.match(line, position)
    if quoted is None:
        return None, len(line)
    return _ESCAPE.sub(r"\1", quoted[1]), quoted.end()


def _end(pattern: re.Pattern[str], line: str, position: int) -> int:
    match = pattern.match(line, position)
    return len(line) if match is None else match.end()


class ContentRange(NamedTuple):
    """Bytes ``start`` up to but not including ``stop`` of ``size`` bytes, None if unknown."""

    start: int
    stop: int
    size: int | None


def content_range(value: str) -> ContentRange | None:
    """Return a parsed ``Content-Range`` (RFC 9110 §14.4), None unless it is one range of bytes."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    size = None if match[3] == "*" else int(match[3])
    return ContentRange(int(match[1]), int(match[2]) + 1, size)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return ``Retry-After`` (RFC 9110 §10.2.3) in seconds, at most a day; None if unreadable."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER)
    if len(value) > MAX_DATE:
        return None
    try:
        wait = parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(wait, 0.0), MAX_RETRY_AFTER)


def next_link(lines: Iterable[str]) -> str | None:
    """Return the target of the first ``Link`` with the relation ``next`` (RFC 8288), or None."""
    for line in _bounded(lines, MAX_LINK_LINES, MAX_LINK):
        position = 0
        while match := _LINK.match(line, position):
            relation = _RELATION.search(match[2])
            if relation and "next" in (relation[1] or relation[2] or "").lower().split():
                return match[1]
            position = match.end()
    return None


def warning_text(value: str) -> str | None:
    """Return the text of ``299 - "text"`` (distribution-spec "Warnings"); None for anything else.

    It can be sent in a header again.
    """
    if not value.startswith('299 - "') or not value.endswith('"') or len(value) > MAX_WARNING:
        return None
    text = value[7:-1]
    return text if text and text.isascii() and text.isprintable() and '"' not in text else None
