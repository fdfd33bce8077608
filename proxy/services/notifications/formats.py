"""Serializes events for receivers.

CloudEvents 1.0 in the structured mode of HTTP (https://github.com/cloudevents/spec), or the
envelope of the CNCF registry (https://distribution.github.io/distribution/about/notifications/).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from proxy.runtime.events import Event, Fact
from proxy.services.notifications.images import image_of

TYPE_PREFIX: Final = "dev.millpond."
_CLOUDEVENTS: Final = "application/cloudevents+json"
_DISTRIBUTION: Final = "application/vnd.docker.distribution.events.v2+json"
_BLOB: Final = "application/octet-stream"


class Written(NamedTuple):
    """The body of a request, and its media type."""

    media_type: str
    body: bytes


def stored(event: Event) -> str:
    """Return an event as JSON, from which every format is made."""
    document = asdict(event)
    del document["serial"]  # the numbers begin anew with each start
    return json.dumps(document)


def cloudevent(event: Mapping[str, Any], message: str, source: str) -> Written:
    """Return an event of ``stored`` as a CloudEvent; ``source`` is the URI of this Millpond."""
    document = {
        "specversion": "1.0",
        "id": message,
        "source": source,
        "type": TYPE_PREFIX + event["kind"],
        "subject": event["subject"],
        "time": _time(event),
        "datacontenttype": "application/json",
        "data": event["data"],
    }
    return Written(_CLOUDEVENTS, json.dumps(document).encode())


def distribution(event: Mapping[str, Any], message: str, source: str) -> Written:
    """Return an event of ``stored`` in the envelope of the CNCF registry.

    A pull is a ``pull``. Content that arrived, and a tag that moved, is a ``push`` to this cache.
    """
    data: Mapping[str, Fact] = event["data"]
    is_pull, is_move = event["kind"] == "pull", event["kind"] == "tag-moved"
    image = image_of(event["kind"], event["subject"], data)
    target: dict[str, object] = {
        "digest": data["to"] if is_move else data["digest"] if is_pull else event["subject"],
        "repository": "" if image is None or image.target is None else str(image.target),
    }
    if not is_move:
        target |= {"size": data["bytes"], "length": data["bytes"]}
    if event["kind"] == "cached":
        target["mediaType"] = _BLOB
    if image is not None and image.tag is not None:
        target["tag"] = image.tag
    client = data.get("client")
    known = {} if not is_pull else {"method": "GET", "useragent": data["user_agent"] or ""}
    document = {
        "id": message,
        "timestamp": _time(event),
        "action": "pull" if is_pull else "push",
        "target": target,
        "request": known | ({"addr": client} if _is_address(client) else {}),
        "actor": {} if client is None or _is_address(client) else {"name": client},
        "source": {"addr": source.partition("//")[2]},
    }
    return Written(_DISTRIBUTION, json.dumps({"events": [document]}).encode())


FORMATS: Final = {"cloudevents": cloudevent, "distribution": distribution}


def _time(event: Mapping[str, Any]) -> str:
    """Return the time of an event (RFC 3339)."""
    return datetime.fromtimestamp(event["time"], UTC).isoformat().replace("+00:00", "Z")


def _is_address(client: Fact) -> bool:
    try:
        ip_address(str(client))
    except ValueError:
        return False
    return True
