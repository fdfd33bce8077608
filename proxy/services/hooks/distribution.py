"""Notifications of distribution, GitLab's registry and other Millponds.

https://distribution.github.io/distribution/about/notifications/
"""

from typing import Final

from proxy.services.hooks.delivery import (
    Body,
    Delivery,
    MalformedDelivery,
    Mention,
    mapping,
    mentions,
)

EXPECTED: Final = "events[] with id, action, target.repository and target.tag"
_ACTIONS: Final = ("push", "delete")


def parse(body: Body) -> Delivery:
    """Return the tags that were pushed or deleted. Raises ``MalformedDelivery``.

    There is an event for each blob and each pull too; those are ignored.
    """
    events = body.document.get("events")
    if not isinstance(events, list):
        raise MalformedDelivery
    found = [mention for event in events for mention in _mentions(mapping(event))]
    signed = body.headers.get("webhook-id")
    return Delivery(tuple(found), () if signed is None else (signed,))


def _mentions(event: object) -> tuple[Mention, ...]:
    entry = mapping(event)
    target = mapping(entry.get("target"))
    if entry.get("action") not in _ACTIONS or not target.get("tag"):
        return ()
    return mentions(target.get("repository"), [target["tag"]], str(entry.get("id") or ""))
