"""A receiver of events: the events that it gets, and the requests to it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from ssl import SSLContext

from proxy import VERSION
from proxy.core.selection import Selector
from proxy.runtime.events import Event, EventKind
from proxy.services.notifications.formats import Written
from proxy.services.notifications.images import image_of, selects
from proxy.services.notifications.signing import Signer


@dataclass(frozen=True, slots=True, repr=False)
class Receiver:
    """One receiver. Its URL may be as secret as its keys; only ``name`` is ever logged.

    ``images`` empty: all. ``timeout`` and ``retry_for`` are in seconds.
    """

    name: str
    url: str
    kinds: frozenset[EventKind]
    images: tuple[Selector, ...]
    write: Callable[[dict[str, object], str, str], Written]
    signer: Signer | None
    authorization: str | None
    tls: SSLContext
    timeout: float
    retry_for: float
    max_queue: int

    def wants(self, event: Event) -> bool:
        """Return True if an event is sent to this receiver."""
        if event.kind not in self.kinds:
            return False
        image = image_of(event.kind, event.subject, event.data) if self.images else None
        return image is None or any(selects(one, image) for one in self.images)

    def request(self, message: str, event: str, source: str) -> tuple[dict[str, str], bytes]:
        """Return the headers and the body of a request about a stored event.

        Each attempt has another timestamp, and so another signature.
        """
        media_type, body = self.write(json.loads(event), message, source)
        timestamp = int(time.time())
        headers = {
            "Content-Type": media_type,
            "User-Agent": f"millpond/{VERSION}",
            "webhook-id": message,
            "webhook-timestamp": str(timestamp),
        }
        if self.signer is not None:
            headers["webhook-signature"] = self.signer.sign(message, timestamp, body)
        if self.authorization is not None:
            headers["Authorization"] = self.authorization
        return headers, body
