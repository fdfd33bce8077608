"""The checks of ``millpond doctor``, for a running server or none.

``network`` and ``registry`` check registries, ``machine`` this machine, ``shared`` Redis and the
bucket, ``clients`` the configurations of clients. A check is a function that returns a ``Finding``;
to add one, add a line to its group.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from yarl import URL

from proxy.app.doctor import shared
from proxy.app.doctor.clients import Clients
from proxy.app.doctor.machine import Machine
from proxy.app.doctor.network import Way
from proxy.app.doctor.registry import Parts, RegistryChecks, Sample, well_known
from proxy.app.doctor.results import Check, Finding, Result, Status, blocking, ran, skipped
from proxy.app.upstreams import Upstreams
from proxy.core.errors import ConfigError
from proxy.core.names import Image
from proxy.runtime.metrics import Metrics
from proxy.settings import Settings
from proxy.upstream.guard import SYSTEM_NETWORK

ROOT: Final = Path("/")

Named = tuple[str, Check]


async def examined(
    settings: Settings, upstream: str | None, image: Image | None, root: Path = ROOT
) -> list[Result]:
    """Return the results of all checks; with ``upstream`` only those of that registry.

    ``image`` is the one to test its registry with. ``root`` is the directory above ``etc``.
    Groups run at the same time, the checks of one registry one after the other. Raises
    ``ConfigError``.
    """
    names = [upstream] if upstream is not None else list(settings.upstreams)
    chosen = settings.model_copy(
        update={"upstreams": {name: settings.upstreams[name] for name in names}}
    )
    upstreams = Upstreams(Metrics(()), time.time, 1, SYSTEM_NETWORK)
    plan = await upstreams.prepare(chosen)
    try:
        groups = []
        for name, built in plan.built.items():
            configured = chosen.upstreams[name]
            parts = Parts(configured, built.transport, built.authorizer, built.upstream)
            groups.append(_registry(chosen, parts, _sample(name, chosen, image)))
        if upstream is None:
            groups += [_together(*group) for group in _local(settings, root)]
        found = await asyncio.gather(*groups)
    finally:
        await upstreams.discard(plan)
    return [result for group in found for result in group]


def _sample(name: str, settings: Settings, image: Image | None) -> Sample | None:
    """Return the image to test a registry with. Raises ``ConfigError`` for one without a name."""
    if image is None or (image.target is not None and image.target.upstream != name):
        return well_known(name, settings.upstreams[name])
    if image.target is None:
        raise ConfigError("--image: name the repository too, as nginx@sha256:…")
    return Sample(image.target.repo, image.digest or image.tag or "latest")


async def _registry(settings: Settings, parts: Parts, sample: Sample | None) -> list[Result]:
    """Check one registry. If it cannot be reached, its other checks are skipped."""
    name = parts.transport.name
    checks = RegistryChecks(parts, sample)
    way = Way.to(name, URL(parts.settings.url), parts.settings.tls)
    first: list[Named] = [
        ("dns", way.dns),
        ("tcp", way.tcp),
        ("tls", way.certificate),
        ("/v2/", checks.answer),
    ]
    reason = "offline: true, so it is not asked" if settings.offline_mode(name) == "true" else ""
    results: list[Result] = []
    for title, check in (*first, *checks.checks()):
        if reason:
            results.append(await ran(name, title, _skip(reason)))
            continue
        results.append(await ran(name, title, check))
        if results[-1].status is Status.FAILED and title in dict(first):
            reason = f"{title} failed"
    return results


def _skip(reason: str) -> Check:
    async def skip() -> Finding:
        return skipped(reason)

    return skip


def _local(settings: Settings, root: Path) -> Sequence[tuple[str, list[Named]]]:
    """Return the groups of checks other than those of registries."""
    machine, clients = Machine(settings), Clients(settings, root)
    return (
        (
            "machine",
            [
                ("permissions", blocking(machine.permissions)),
                ("space", blocking(machine.space)),
                ("disk speed", blocking(machine.disk)),
                ("descriptors", blocking(machine.descriptors)),
                ("port", machine.port),
            ],
        ),
        (
            "shared",
            [
                ("redis", lambda: shared.redis(settings)),
                ("bucket", lambda: shared.bucket(settings)),
            ],
        ),
        (
            "clients",
            [
                ("docker", blocking(clients.docker)),
                ("containerd", blocking(clients.containerd)),
                ("podman", blocking(clients.podman)),
                ("buildkit", blocking(clients.buildkit)),
                ("k3s", blocking(clients.k3s)),
            ],
        ),
    )


async def _together(subject: str, checks: list[Named]) -> list[Result]:
    return await asyncio.gather(*(ran(subject, name, check) for name, check in checks))
