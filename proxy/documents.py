"""Reads JSON that others wrote: whatever is wrong with it, it is only not understood."""

import json


def read_object(text: bytes) -> dict[str, object]:
    """Return a JSON object; empty for what is none, is broken, or is nested beyond reason."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def as_list(value: object) -> list[object]:
    """Return a JSON array's values; empty for anything else."""
    return value if isinstance(value, list) else []
