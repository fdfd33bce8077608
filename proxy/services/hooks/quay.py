"""Notifications of Quay for "Push to Repository" (https://docs.quay.io/guides/notifications.html).

``updated_tags`` is a list of tags, in old versions a mapping from tags to images.
"""

from typing import Final

from proxy.services.hooks.delivery import Body, Delivery, MalformedDelivery, mentions

EXPECTED: Final = "repository and updated_tags, as for the event Push to Repository"


def parse(body: Body) -> Delivery:
    """Return the tags that were pushed. Raises ``MalformedDelivery``."""
    tags = body.document.get("updated_tags")
    if not isinstance(tags, list | dict):
        raise MalformedDelivery
    return Delivery(mentions(body.document.get("repository"), tags))
