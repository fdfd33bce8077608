"""Webhooks of Docker Hub (https://docs.docker.com/docker-hub/repos/manage/webhooks/)."""

from typing import Final

from proxy.services.hooks.delivery import Body, Delivery, mapping, mentions

EXPECTED: Final = "repository.repo_name and push_data.tag"


def parse(body: Body) -> Delivery:
    """Return the tag that was pushed. Raises ``MalformedDelivery``."""
    repository = mapping(body.document.get("repository"))
    pushed = mapping(body.document.get("push_data"))
    return Delivery(mentions(repository.get("repo_name"), [pushed.get("tag")]))
