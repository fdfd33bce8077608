"""What a server answers, and how it refuses. Knows neither HTTP nor terminals."""

import json
from collections.abc import Mapping
from typing import Any

Query = Mapping[str, str]


class Unanswered(Exception):
    """There is no answer, or none that can be understood; the message is one line.

    ``errno`` says why no connection came about, None if one did.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class Refused(Exception):
    """The server's answer is an error: its HTTP status, and its message as one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Document(dict[str, Any]):
    """A JSON object from the server, which must have what it is asked for."""

    def __missing__(self, key: str) -> Any:
        raise Unanswered(f"the server's answer lacks {key!r}; is it another version of Millpond?")


def parsed(text: bytes) -> Document:
    """Return a JSON object of the server's. Raises ``Unanswered`` for anything else."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Unanswered("the server's answer is not understood; is it a Millpond?")
    return Document(document)
