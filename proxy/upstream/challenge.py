"""Reads ``WWW-Authenticate`` (RFC 7235 §4.1). Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')
_SCHEME = re.compile(rf"({_WORD})(?=[\s,]|$)")
_SEPARATOR = re.compile(r"[\s,]*")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme and its parameters' names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Return all challenges of all header lines, in order; what cannot be read is passed over."""
    challenges: list[Challenge] = []
    for value in values:
        challenges.extend(_of_line(value))
    return challenges


def _of_line(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    position = _end(_SEPARATOR.match(value, 0))
    while position < len(value):
        if found and (parameter := _PARAMETER.match(value, position)):
            name, quoted, bare = parameter.groups()
            text = bare if quoted is None else _ESCAPE.sub(r"\1", quoted)
            found[-1][1].setdefault(name.lower(), text)
            position = parameter.end()
        elif scheme := _SCHEME.match(value, position):
            found.append((scheme[1].lower(), {}))
            position = scheme.end()
        else:
            position += 1
        position = _end(_SEPARATOR.match(value, position))
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _end(match: re.Match[str] | None) -> int:
    assert match is not None
    return match.end()
