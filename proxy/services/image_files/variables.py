"""Expands variables as Dockerfiles and Compose files do.

Both have ``$NAME``, ``${NAME}`` and the operators ``:-``, ``-``, ``:+``, ``+``, ``:?`` and ``?``,
whose words may have variables again. Dockerfiles also remove prefixes (``#``, ``##``) and suffixes
(``%``, ``%%``) and replace (``/``, ``//``). A dollar sign is escaped by another character in each.
"""

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS: Final = (":-", ":+", ":?", "-", "+", "?", "##", "#", "%%", "%", "//", "/")
_MAX_DEPTH: Final = 20


class UnsetError(ValueError):
    """A variable has no value and no default; the message names it."""


def expand(text: str, values: Mapping[str, str], *, escape: str, depth: int = 0) -> str:
    """Return ``text`` with its variables replaced; ``escape`` before ``$`` keeps it.

    Raises ``UnsetError`` for a variable without a value and default, ``ValueError`` for a syntax
    error.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("variables within variables are nested too deeply")
    parts: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == escape and text[at + 1 : at + 2] == "$":
            parts.append("$")
            at += 2
        elif text[at] != "$":
            parts.append(text[at])
            at += 1
        elif text[at + 1 : at + 2] == "{":
            end = _closing(text, at + 2)
            parts.append(_braces(text[at + 2 : end], values, escape, depth))
            at = end + 1
        elif name := _NAME.match(text, at + 1):
            parts.append(_value(name[0], values))
            at = name.end()
        else:
            raise ValueError(f"a dollar sign without a variable in {text[:80]!r}")
    return "".join(parts)


def _closing(text: str, start: int) -> int:
    """Return the position of the brace that closes the one opened before ``start``."""
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{" and text[at - 1] == "$") - (text[at] == "}")
        if depth == 0:
            return at
    raise ValueError(f"a brace is not closed in {text[:80]!r}")


def _braces(inner: str, values: Mapping[str, str], escape: str, depth: int) -> str:
    name = _NAME.match(inner)
    if name is None:
        raise ValueError(f"no variable in ${{{inner[:80]}}}")
    rest = inner[name.end() :]
    if not rest:
        return _value(name[0], values)
    operator = next((one for one in _OPERATORS if rest.startswith(one)), None)
    if operator is None:
        raise ValueError(f"not understood: ${{{inner[:80]}}}")
    word = rest[len(operator) :]
    value = values.get(name[0])
    has_value = value is not None and (value != "" or operator[0] != ":")
    match operator[-1]:
        case "-":
            return (
                value or "" if has_value else expand(word, values, escape=escape, depth=depth + 1)
            )
        case "+":
            return expand(word, values, escape=escape, depth=depth + 1) if has_value else ""
        case "?" if not has_value:
            raise UnsetError(f"{name[0]}: {word or 'has no value'}")
        case "?":
            return value or ""
    return _edited(_value(name[0], values), operator, word)


def _value(name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        raise UnsetError(f"{name} has no value")
    return values[name]


def _edited(value: str, operator: str, word: str) -> str:
    """Return a value without a prefix or suffix, or with replacements (Dockerfile 1.7)."""
    if operator in ("/", "//"):
        pattern, _, replacement = word.partition("/")
        found = re.compile(translate(pattern).removesuffix(r"\Z").removesuffix(r"\z"))
        return found.sub(lambda _: replacement, value, count=0 if operator == "//" else 1)
    whole = re.compile(translate(word))
    size = len(value)
    if operator[0] == "#":
        lengths = range(size, -1, -1) if operator == "##" else range(size + 1)
        return next((value[n:] for n in lengths if whole.match(value[:n])), value)
    starts = range(size + 1) if operator == "%%" else range(size, -1, -1)
    return next((value[:n] for n in starts if whole.match(value[n:])), value)
