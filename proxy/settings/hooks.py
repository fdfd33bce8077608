"""The settings of ``hooks``: the senders that may report pushed tags to ``/-/hooks/<name>``."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from proxy.settings.units import Section

HookName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]

HOME: Final = {"dockerhub": "docker.io", "github": "ghcr.io", "quay": "quay.io"}
"""The registry of each format that only one registry uses."""


class Hook(Section):
    """A sender of webhooks. It reports pushed tags, which Millpond then checks at once."""

    format: Literal["dockerhub", "github", "quay", "harbor", "gitlab", "distribution"]
    """The sender of the webhooks. `distribution` is also the format of GitLab's registry and of
    another Millpond."""
    secret_file: Path
    """File with the secret of the sender, at least 16 characters. A second line is a second secret,
    to rotate them. Millpond reads the file at each delivery."""
    upstream: str | None = None
    """Name of the upstream that the reported images belong to. Default: docker.io for `dockerhub`,
    ghcr.io for `github`, quay.io for `quay`."""

    @model_validator(mode="after")
    def _check_upstream(self) -> Self:
        if self.upstream is None and self.format not in HOME:
            raise ValueError("upstream is missing: name the registry that the images belong to")
        return self

    @property
    def registry(self) -> str:
        """The name of the upstream."""
        return self.upstream or HOME[self.format]
