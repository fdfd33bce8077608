"""Reads ``WWW-Authenticate`` (RFC 9110 §11.6.1) in one pass over bounded input. Pure.

A hostile registry writes this header. Each pattern below is possessive (it never gives back a
character), and the position only moves forward, so the time grows with the length of the input.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

MAX_LINES: Final = 16
MAX_CHARACTERS: Final = 16 * 1024
"""Of all lines together. A longer line, and what follows it, is not read."""

MAX_CHALLENGES: Final = 16
MAX_PARAMETERS: Final = 32
"""Of one challenge; more are left out."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]++")
_EQUALS = re.compile(r"\s*+=\s*+")
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"')
_BARE = re.compile(r'[^\s,"]*+')
_SEPARATOR = re.compile(r"[\s,]*+")
_JUNK = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|[^\s,"]++')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme and its parameters' names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Return the challenges of all header lines, in order; what cannot be read is passed over.

    Returns at most ``MAX_CHALLENGES``, from the first ``MAX_LINES`` lines and ``MAX_CHARACTERS``.
    """
    challenges: list[Challenge] = []
    left = MAX_CHARACTERS
    for value in islice(values, MAX_LINES):
        left -= len(value)
        if left < 0:
            break
        challenges.extend(islice(_of_line(value), MAX_CHALLENGES - len(challenges)))
    return challenges


def _of_line(line: str) -> Iterator[Challenge]:
    """Yield the challenges of one line.

    At each position there are three cases: a parameter of the challenge before it, the scheme of
    the next challenge, or something else, which is skipped up to the next separator.
    """
    scheme: str | None = None
    parameters: dict[str, str] = {}
    position = _end(_SEPARATOR, line, 0)
    while position < len(line):
        word = _TOKEN.match(line, position)
        equals = word and _EQUALS.match(line, word.end())
        if word and equals and scheme is not None:
            text, position = _value(line, equals.end())
            if text is not None and len(parameters) < MAX_PARAMETERS:
                parameters.setdefault(word[0].lower(), text)
        elif word and (word.end() == len(line) or line[word.end()] == "," or _is_space(line, word)):
            if scheme is not None:
                yield Challenge(scheme, parameters)
            scheme, parameters, position = word[0].lower(), {}, word.end()
        else:
            position = _end(_JUNK, line, position)
        position = _end(_SEPARATOR, line, position)
    if scheme is not None:
        yield Challenge(scheme, parameters)


def _value(line: str, position: int) -> tuple[str | None, int]:
    """Return a parameter's value and where it ends; None when its quotes are never closed."""
    if not line.startswith('"', position):
        end = _end(_BARE, line, position)
        return line[position:end], end
    quoted = _QUOTED.match(line, position)
    if quoted is None:
        return None, len(line)
    return _ESCAPE.sub(r"\1", quoted[1]), quoted.end()


def _is_space(line: str, word: re.Match[str]) -> bool:
    return line[word.end()].isspace()


def _end(pattern: re.Pattern[str], line: str, position: int) -> int:
    match = pattern.match(line, position)
    return len(line) if match is None else match.end()
