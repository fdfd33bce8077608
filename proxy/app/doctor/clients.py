"""The clients on this machine: which of their configurations point to this Millpond.

Only reads files. A client without a configuration, or with one that points elsewhere, is not an
error.
"""

import json
import socket
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from yarl import URL

from proxy.app.doctor.results import Finding, failed, ok, skipped, warning
from proxy.core.tolerant_json import as_list
from proxy.settings import Settings

MAX_FILE: Final = 4 * 1024 * 1024
MAX_FILES: Final = 200

_MALFORMED: Final = (ValueError, AttributeError, TypeError, RecursionError, yaml.YAMLError)
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mirror:
    """An address that a client uses for the images of a registry; ``names`` is that registry."""

    names: str
    address: str
    is_insecure: bool = False


class Clients:
    """The checks of clients, whose files are below ``root``."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self._settings = settings
        self._root = root

    def docker(self) -> Finding:
        """Check ``daemon.json``."""
        return self._checked("docker", [self._root / "etc/docker/daemon.json"], _of_docker)

    def containerd(self) -> Finding:
        """Check the ``hosts.toml`` of each registry."""
        files = sorted((self._root / "etc/containerd/certs.d").glob("*/hosts.toml"))
        return self._checked("containerd", files, _of_containerd)

    def podman(self) -> Finding:
        """Check ``registries.conf`` and its parts, which CRI-O and Skopeo read too."""
        folder = self._root / "etc/containers"
        files = [folder / "registries.conf", *sorted(folder.glob("registries.conf.d/*.conf"))]
        return self._checked("podman", files, _of_podman)

    def buildkit(self) -> Finding:
        """Check ``buildkitd.toml``."""
        files = [self._root / "etc/buildkit/buildkitd.toml"]
        return self._checked("buildkit", files, _of_buildkit)

    def k3s(self) -> Finding:
        """Check ``registries.yaml`` of K3s and RKE2."""
        files = [self._root / f"etc/rancher/{name}/registries.yaml" for name in ("k3s", "rke2")]
        return self._checked("k3s", files, _of_k3s)

    def _checked(
        self, client: str, files: list[Path], read: Callable[[Path, str], Iterator[Mirror]]
    ) -> Finding:
        found = [file for file in files if file.is_file()][:MAX_FILES]
        if not found:
            return skipped("it has no configuration on this machine")
        mirrors: list[Mirror] = []
        for file in found:
            try:
                mirrors += read(file, _text(file))
            except (*_MALFORMED, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is malformed"
                return failed(f"{file} cannot be used: {reason}", f"correct {file}")
        return self._judged(client, mirrors)

    def _judged(self, client: str, mirrors: list[Mirror]) -> Finding:
        """Return the finding for the mirrors. Looks up the names of this machine."""
        own = [mirror for mirror in mirrors if self._is_own(mirror.address)]
        if not own:
            return skipped(f"none of its {len(mirrors)} mirrors leads here")
        for mirror in own:
            if (problem := self._wrong_scheme(mirror)) is not None:
                return failed(problem, f"correct it: millpond client {client}")
        names = ", ".join(dict.fromkeys(mirror.names for mirror in own))
        others = {mirror.address for mirror in mirrors} - {mirror.address for mirror in own}
        text = f"pulls of {names} come through {own[0].address}"
        if others:
            return warning(f"{text}; there are other mirrors too", "check that they are intended")
        return ok(text)

    def _is_own(self, address: str) -> bool:
        """Return True if an address is that of this server, on this machine."""
        url = _url(address)
        if url is None or url.port != self._settings.port:
            return False
        return (url.host or "") in _LOCAL | {self._settings.host} | _own_names()

    def _wrong_scheme(self, mirror: Mirror) -> str | None:
        """Return the error in the scheme of a mirror, None if it is right."""
        has_tls, url = self._settings.tls is not None, URL(mirror.address)
        if "://" not in mirror.address:
            if has_tls or mirror.is_insecure:
                return None
            return f"{mirror.address} is asked by HTTPS, but has none: insecure = true is missing"
        if (url.scheme == "https") == has_tls:
            return None
        speaks = "HTTPS" if has_tls else "plain HTTP"
        return f"{mirror.address} is asked by {url.scheme}, but Millpond speaks {speaks}"


def _of_docker(_: Path, text: str) -> Iterator[Mirror]:
    for address in as_list(json.loads(text).get("registry-mirrors")):
        yield Mirror("docker.io", str(address))


def _of_containerd(file: Path, text: str) -> Iterator[Mirror]:
    """Yield the hosts of one registry, whose name is that of the directory."""
    name = "all registries" if file.parent.name == "_default" else file.parent.name
    for address in tomllib.loads(text).get("host", {}):
        yield Mirror(name, str(address))


def _of_podman(_: Path, text: str) -> Iterator[Mirror]:
    """Yield the mirrors, and registries that are other ones' location (registries.conf(5))."""
    for registry in tomllib.loads(text).get("registry", []):
        name = str(registry.get("prefix") or registry.get("location") or "")
        for mirror in (*registry.get("mirror", []), registry):
            location = str(mirror.get("location") or "").partition("/")[0]
            if location and location != name:
                yield Mirror(name, location, is_insecure=mirror.get("insecure") is True)


def _of_buildkit(_: Path, text: str) -> Iterator[Mirror]:
    registries: Document = tomllib.loads(text).get("registry", {})
    for name, registry in registries.items():
        for address in registry.get("mirrors", []):
            host = str(address).partition("/")[0]
            yield Mirror(name, host, is_insecure=registries.get(host, {}).get("http") is True)


def _of_k3s(_: Path, text: str) -> Iterator[Mirror]:
    for name, mirror in (yaml.safe_load(text).get("mirrors") or {}).items():
        for address in map(str, as_list(mirror.get("endpoint"))):
            url = address if "://" in address else f"https://{address}"
            yield Mirror("all registries" if name == "*" else str(name), url)


def _url(address: str) -> URL | None:
    try:
        return URL(address if "://" in address else f"//{address}")
    except ValueError:
        return None


def _own_names() -> frozenset[str]:
    """Return the names and addresses of this machine."""
    name = socket.gethostname()
    found = {name, socket.getfqdn(name)}
    with suppress(OSError):
        found |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    return frozenset(found)


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(MAX_FILE).decode()
