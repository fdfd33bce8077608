"""Webhooks of Harbor, in both of its payload formats: Default and CloudEvents.

https://goharbor.io/docs/latest/working-with-projects/project-configuration/configure-webhooks/
"""

from typing import Final

from proxy.core.tolerant_json import as_list
from proxy.services.hooks.delivery import Body, Delivery, mapping, mentions, text

EXPECTED: Final = (
    "type with event_data.repository.repo_full_name and event_data.resources[].tag, "
    "or the same as CloudEvents"
)
_CHANGES: Final = (
    *("PUSH_ARTIFACT", "DELETE_ARTIFACT"),
    *("harbor.artifact.pushed", "harbor.artifact.deleted"),
)


def parse(body: Body) -> Delivery:
    """Return the tags that were pushed or deleted. Raises ``MalformedDelivery``."""
    document = body.document
    kind = text(document.get("type"))
    is_cloud_event = "specversion" in document
    ids = (text(document.get("id")),) if is_cloud_event else ()
    if kind not in _CHANGES:
        return Delivery(ids=ids)
    data = mapping(document.get("data" if is_cloud_event else "event_data"))
    resources = [mapping(resource) for resource in as_list(data.get("resources"))]
    tags = [resource["tag"] for resource in resources if resource.get("tag")]
    repository = mapping(data.get("repository"))
    return Delivery(mentions(repository.get("repo_full_name"), tags), ids)
