"""Removes our credentials from text that an upstream sends.

A registry, or a proxy in front of it, may echo our request in an error or a header. Clients and
the log would show it.
"""

import base64
import binascii
import re
from typing import Final
from urllib.parse import quote

from cachetools import LRUCache

from proxy.runtime.client_key import CLIENT_KEY

REDACTED: Final = "[redacted]"
MAX_KNOWN: Final = 128
"""Number of recorded values of ``Authorization``, the last ones sent. Each scope has a token."""

MIN_LENGTH: Final = 8
"""Characters. A shorter password may occur in our own text by chance."""


class Redactor:
    """The credentials sent to one upstream and its token servers, in all forms of an echo.

    Case is ignored: a host name returns an echo in lower case. Each client has its own credentials
    removed: removing another's would show which words are in them.
    """

    def __init__(self) -> None:
        self._known: LRUCache[tuple[str, str], dict[str, str]] = LRUCache(MAX_KNOWN)

    def remember(self, authorization: str) -> None:
        """Remember a value of ``Authorization`` or ``Proxy-Authorization`` before it is sent."""
        key = CLIENT_KEY.get(), authorization
        if self._known.get(key) is None:
            self._known[key] = _forms(authorization)

    def redact(self, text: str) -> str:
        """Return text of an upstream without any form of the credentials."""
        return self._redact(text, 1)

    def redact_message(self, text: str) -> str:
        """Return a message of ours, which may quote an upstream, without the longer forms.

        Replacing a short password there would reveal that it is one of our words.
        """
        return self._redact(text, MIN_LENGTH)

    def is_leaked_by(self, text: str) -> bool:
        """Return True if a value, which must stay as it is or be dropped, holds a longer form."""
        return bool(self._found(text, MIN_LENGTH))

    def _redact(self, text: str, shortest: int) -> str:
        for form in self._found(text, shortest):
            text = re.sub(re.escape(form), REDACTED, text, flags=re.IGNORECASE)
        return text

    def _found(self, text: str, shortest: int) -> list[str]:
        """Return the forms of at least ``shortest`` characters in ``text``, the longest first.

        A short form may be part of a longer one; replaced first, it would leave the rest readable.
        The search is a plain one, because compiling a pattern takes milliseconds for a token, and
        every error of an upstream is searched.
        """
        lowered, client_key = text.lower(), CLIENT_KEY.get()
        found = {
            form
            for (owner, _), forms in self._known.items()
            if owner == client_key
            for form, lowered_form in forms.items()
            if len(form) >= shortest and lowered_form in lowered
        }
        return sorted(found, key=len, reverse=True)


def _forms(authorization: str) -> dict[str, str]:
    """Return the forms of an echo, each with itself in lower case.

    They are the whole value, the value without its scheme, the decoded pair and the password alone.
    """
    scheme, _, credential = authorization.partition(" ")
    forms = [authorization, credential, credential.rstrip("=")]
    if scheme.lower() == "basic":
        pair = _decoded(credential)
        password = pair.partition(":")[2]
        forms += [pair, password, quote(pair), quote(password, safe="")]
    return {form: form.lower() for form in forms if form}


def _decoded(credential: str) -> str:
    try:
        return base64.b64decode(credential).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
