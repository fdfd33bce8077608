"""Runs the doctor on settings, and finds results."""

from pathlib import Path
from typing import Any

from proxy.app.doctor import examine
from proxy.app.doctor.results import Finding, Result, Status
from proxy.core.routing import Router
from proxy.settings import Settings

OTHERS = dict.fromkeys(
    ("ghcr.io", "quay.io", "gcr.io", "registry.k8s.io", "mcr.microsoft.com", "public.ecr.aws")
)
"""Leaves no registry but docker.io."""

Found = dict[str, Result]


def settings_of(folder: Path, hub: dict[str, Any], **changes: Any) -> Settings:
    document: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "storage": {"path": str(folder / "cache"), **changes.pop("storage", {})},
        "upstreams": {"docker.io": hub, **OTHERS},
        "patience": {"retries": 0},
        **changes,
    }
    return Settings.model_validate(document)


async def checked(
    settings: Settings, image: str | None = None, upstream: str | None = "docker.io"
) -> Found:
    """Return the results of the checks of one registry by their names; None: of all."""
    parsed = None if image is None else Router(settings).parse_image(image)
    results = await examine(settings, upstream, parsed, settings.storage.path.parent)
    return {result.check: result for result in results}


def says(result: Result | Finding, status: str, *words: str) -> None:
    """Assert what a result says; a failure and a warning say what to do."""
    assert result.status == status, result
    for word in words:
        assert word in f"{result.detail} | {result.remedy}", result
    assert bool(result.remedy) == (result.status in (Status.FAILED, Status.WARNING)), result
