"""Webhooks of GitHub packages: the events ``package`` and ``registry_package``, and ``ping``.

https://docs.github.com/en/webhooks/webhook-events-and-payloads#package
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from proxy.services.hooks.delivery import Body, Delivery, MalformedDelivery, mapping, mentions, text

EXPECTED: Final = (
    "application/json of the event package or registry_package (X-GitHub-Event), with package_url "
    "and container_metadata.tag.name of its package_version"
)
_EVENTS: Final = ("package", "registry_package")
_ACTIONS: Final = ("published", "updated")


def parse(body: Body) -> Delivery:
    """Return the tag that was pushed. Raises ``MalformedDelivery``.

    The signature covers the body and not the delivery's id, so that the body identifies it too.
    """
    ids = (body.headers.get("X-GitHub-Delivery", ""), hashlib.sha256(body.raw).hexdigest())
    event = body.headers.get("X-GitHub-Event", "")
    if event == "ping":
        return Delivery(is_ping=True)
    if event not in _EVENTS:
        raise MalformedDelivery
    package = mapping(body.document.get(event))
    version = mapping(package.get("package_version"))
    if body.document.get("action") not in _ACTIONS or not _is_image(package):
        return Delivery(ids=ids)
    metadata = mapping(version.get("container_metadata"))
    tag = text(mapping(metadata.get("tag")).get("name"))
    # An image of an index, which has no tag, is an event too. Its URL ends with a colon.
    tags = [tag] if tag else []
    return Delivery(mentions(_repository(text(version.get("package_url"))), tags), ids)


def _is_image(package: Mapping[str, object]) -> bool:
    kinds = (package.get("package_type"), package.get("ecosystem"))
    return any(str(kind).lower() in ("container", "docker") for kind in kinds)


def _repository(url: str) -> str:
    """Return the repository of ``ghcr.io/Owner/name:tag``, without the registry."""
    path = url.partition("/")[2]
    return path.partition(":")[0]
