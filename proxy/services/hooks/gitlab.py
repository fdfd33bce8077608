"""Notifications of GitLab's registry, and GitLab's own webhooks where they name a tag.

The registry's are those of distribution. A project's own webhooks name a Git tag or branch.
Pipelines usually push images under the same tag, so that tag may have changed.
https://docs.gitlab.com/user/project/integrations/webhook_events/
"""

from collections.abc import Mapping
from typing import Final

from proxy.services.hooks import distribution
from proxy.services.hooks.delivery import Body, Delivery, MalformedDelivery, mapping, mentions, text

EXPECTED: Final = (
    f"{distribution.EXPECTED} (of the registry), or object_kind pipeline, tag_push or release with "
    "project.path_with_namespace (of a project)"
)
_TAGS: Final = "refs/tags/"


def parse(body: Body) -> Delivery:
    """Return the tags that may have changed. Raises ``MalformedDelivery``."""
    document = body.document
    if "events" in document:
        return distribution.parse(body)
    tag = _tag(document)
    name = mapping(document.get("project")).get("path_with_namespace")
    ids = [body.headers.get(header) for header in ("webhook-id", "Idempotency-Key")]
    found = mentions(name, [] if tag is None else [tag])
    return Delivery(found, tuple(one for one in ids if one is not None))


def _tag(document: Mapping[str, object]) -> str | None:
    """Return the tag of a webhook, None if no image is ready."""
    match document.get("object_kind"):
        case "tag_push":
            return text(document.get("ref")).removeprefix(_TAGS)
        case "release":
            return text(document.get("tag"))
        case "pipeline":
            pipeline = mapping(document.get("object_attributes"))
            return text(pipeline.get("ref")) if pipeline.get("status") == "success" else None
        case _:
            raise MalformedDelivery
