"""Writes the table of log events of ``docs/log-events.md``, from the source."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROXY: Final = Path(__file__).resolve().parents[1] / "proxy"
LEVELS: Final = {"debug": "debug", "info": "info", "warning": "warning"}
ERRORS: Final = {"error": "error", "exception": "error"}


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Yield the event, the level and the fields of every call of a logger."""
    for file in sorted(PROXY.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(), file.name)):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                    args=[ast.Constant(value=str(event)), *_],
                    keywords=keywords,
                ) if level in LEVELS | ERRORS:
                    fields = {one.arg for one in keywords if one.arg and one.arg != "exc_info"}
                    yield event, (LEVELS | ERRORS)[level], fields


def table() -> str:
    """Return a row for each event: its levels and its fields."""
    levels, fields = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for event, level, named in logged():
        levels[event].add(level)
        fields[event] |= named
    rows = (
        f"| `{event}` | {', '.join(sorted(levels[event]))} "
        f"| {' '.join(f'`{field}`' for field in sorted(fields[event]))} |"
        for event in sorted(levels, key=str.lower)
    )
    return "\n".join(("| event | level | fields |", "|---|---|---|", *rows))
