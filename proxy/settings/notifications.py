"""The settings of ``notifications``: where events are sent."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from proxy.settings.units import Seconds, Section, Wait
from proxy.settings.warm import check_images

EventName = Literal[
    "pull",
    "cached",
    "tag-moved",
    "evicted",
    "corrupt",
    "upstream-down",
    "upstream-up",
    "budget-low",
    "denied",
]
_EXPRESSED: Final[dict[str, tuple[EventName, ...]]] = {
    "cloudevents": EventName.__args__,  # type: ignore[attr-defined]
    "distribution": ("pull", "cached", "tag-moved"),
}
"""The events that each format can express."""


def _url(value: SecretStr) -> SecretStr:
    """Return a URL of HTTP. The error names no part of it: its path or query may be secret."""
    text = value.get_secret_value()
    try:
        url = urlsplit(text)
        is_complete = bool(url.hostname) and url.port != 0 and not re.search(r"[\s#]", text)
    except ValueError:
        is_complete = False
    if not is_complete or url.scheme not in {"http", "https"}:
        raise ValueError("not the address of a receiver; write https://ci.example.com/hooks")
    if url.username is not None or url.password is not None:
        raise ValueError("credentials do not belong in the address; use authorization_file")
    return value


class Notification(Section):
    """A receiver of events by HTTP POST."""

    url: Annotated[SecretStr, AfterValidator(_url)]
    """Address of the receiver: `http` or `https`, also in a private network. Redirects are not
    followed."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    """Name of the receiver in metrics and logs. Default: the host in `url`."""
    events: tuple[EventName, ...] = ()
    """Kinds of events to send. Empty: all that the format can express, except `pull`."""
    images: tuple[str, ...] = ()
    """Patterns of images, such as `docker.io/library/*` or `ghcr.io/org/app:v*`. Events about other
    images are not sent; events that are not about an image always are. Empty: all images."""
    format: Literal["cloudevents", "distribution"] = "cloudevents"
    """`cloudevents`: CloudEvents 1.0 as JSON. `distribution`: the notifications of the CNCF
    registry, which can express `pull`, `cached` and `tag-moved`."""
    secret_file: Path | None = None
    """File with the secrets that sign each request (Standard Webhooks), one per line: `whsec_` and
    24 to 64 random bytes in base64. Each request has a signature by every secret, so that secrets
    can be rotated."""
    authorization_file: Path | None = None
    """File with the value of the `Authorization` header, such as `Bearer` and a token."""
    ca_file: Path | None = None
    """PEM file of certificate authorities to trust for the receiver, besides the system's."""
    timeout: Wait = 10.0
    """Maximum duration of a request."""
    retry_for: Seconds = 3 * 86400.0
    """How long delivery of an event is retried before the event is dropped."""
    max_queue: int = Field(default=10_000, ge=1, le=1_000_000)
    """Maximum number of queued events for this receiver. Above it, the oldest are dropped."""

    _check_images = field_validator("images")(check_images)

    @property
    def label(self) -> str:
        """The name of the receiver."""
        return self.name or urlsplit(self.url.get_secret_value()).hostname or ""

    @property
    def kinds(self) -> tuple[EventName, ...]:
        """The kinds of events that are sent."""
        return self.events or tuple(one for one in _EXPRESSED[self.format] if one != "pull")

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        unknown = [one for one in self.events if one not in _EXPRESSED[self.format]]
        if unknown:
            raise ValueError(
                f"the format {self.format} cannot express {', '.join(unknown)}, but "
                f"{', '.join(_EXPRESSED[self.format])}; leave them out, or use cloudevents"
            )
        return self


def check_names(value: tuple[Notification, ...]) -> tuple[Notification, ...]:
    """Return receivers with different names. Raises ``ValueError``."""
    labels = [one.label for one in value]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two receivers are called {label}; give each a name")
    return value
