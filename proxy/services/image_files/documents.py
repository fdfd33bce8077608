"""Reads YAML documents of bounded size, and walks through them."""

from collections.abc import Iterator
from typing import Any, Final

import yaml

from proxy.core.errors import RequestInvalid

MAX_VALUES: Final = 2_000_000
"""Values that a walk visits. Aliases of aliases can name exponentially many in a few lines."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_all(text: str, name: str) -> list[object]:
    """Return the documents of a YAML or JSON file. Raises ``RequestInvalid``."""
    try:
        return [one for one in yaml.load_all(text, Loader=_Loader) if one is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark is not None else name
        problem = getattr(error, "problem", None) or str(error)
        raise RequestInvalid(f"{where}: not YAML: {' '.join(problem.split())}") from None
    except (ValueError, RecursionError) as error:
        raise RequestInvalid(f"{name}: not YAML: {error}") from None


def fields(document: object, name: str) -> Iterator[tuple[str, object, dict[str, object]]]:
    """Yield (key, value, mapping that has it) for every field at any depth, in order.

    A mapping that several aliases name is visited once. Raises ``RequestInvalid`` if there are too
    many values.
    """
    left = MAX_VALUES
    visited: set[int] = set()
    stack: list[object] = [document]
    while stack:
        value = stack.pop()
        if id(value) in visited or not isinstance(value, dict | list):
            continue
        visited.add(id(value))
        left -= len(value)
        if left < 0:
            raise RequestInvalid(f"{name}: more than {MAX_VALUES:,} values")
        if isinstance(value, list):
            stack.extend(reversed(value))
            continue
        for key, inner in value.items():
            yield str(key), inner, value
        stack.extend(reversed(list(value.values())))
