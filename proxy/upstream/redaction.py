"""Keeps what we sent as credentials out of what we repeat of an upstream's words.

A registry, or whoever stands in front of it, may echo our request in an error or a header, and
every client and the log would read it.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote

from cachetools import LRUCache

REDACTED: Final = "[redacted]"
MAX_KNOWN: Final = 128
"""Values of ``Authorization``, the last ones sent. Each scope has its own token."""

MIN_TELLING: Final = 8
"""Characters. A shorter password occurs in text by chance."""


class _Form(NamedTuple):
    """One way in which a value can be echoed. ``lowered`` is what is compared."""

    text: str
    lowered: str


class Redactor:
    """The credentials that were sent to one upstream and its token servers.

    Case is ignored: an echo in a host name comes back in lower case.
    """

    def __init__(self) -> None:
        self._known: LRUCache[str, tuple[_Form, ...]] = LRUCache(MAX_KNOWN)

    def note(self, authorization: str) -> None:
        """Remember an ``Authorization`` or ``Proxy-Authorization`` value that is being sent."""
        if self._known.get(authorization) is None:
            self._known[authorization] = _forms(authorization)

    def clean(self, text: str) -> str:
        """Return foreign text without any form of the credentials."""
        return self._without(text, 1)

    def clean_message(self, text: str) -> str:
        """Return a message of ours, which may quote foreign text, without their longer forms.

        To replace a short password there would show that it is a word of ours.
        """
        return self._without(text, MIN_TELLING)

    def is_told_by(self, text: str) -> bool:
        """Return True if foreign text that cannot be altered holds a longer form of them."""
        lowered = text.lower()
        return any(form.lowered in lowered for form in self._forms(MIN_TELLING, len(lowered)))

    def _without(self, text: str, length: int) -> str:
        """Return ``text`` without the forms of at least ``length`` characters.

        A pattern is made only for a form that occurs: to make one takes milliseconds when the form
        is a token, and every error of an upstream comes through here.
        """
        lowered = text.lower()
        for form in self._forms(length, len(lowered)):
            if form.lowered in lowered:
                text = re.sub(re.escape(form.text), REDACTED, text, flags=re.IGNORECASE)
                lowered = text.lower()
        return text

    def _forms(self, shortest: int, longest: int) -> Iterable[_Form]:
        """Return all forms of ``shortest`` to ``longest`` characters, the longest first.

        Shorter ones are parts of longer ones, and what they leave over could still tell.
        """
        known = {
            form
            for forms in self._known.values()
            for form in forms
            if len(form.text) >= shortest and len(form.lowered) <= longest
        }
        return sorted(known, key=lambda form: len(form.text), reverse=True)


def _forms(authorization: str) -> tuple[_Form, ...]:
    """Return how a value can be echoed: whole, without its scheme, decoded, the password alone."""
    scheme, _, credential = authorization.partition(" ")
    forms = [authorization, credential, credential.rstrip("=")]
    if scheme.lower() == "basic":
        pair = _decoded(credential)
        password = pair.partition(":")[2]
        forms += [pair, password, quote(pair), quote(password, safe="")]
    return tuple({_Form(form, form.lower()) for form in forms if form})


def _decoded(credential: str) -> str:
    try:
        return base64.b64decode(credential).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
