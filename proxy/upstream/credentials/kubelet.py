"""Credentials from an exec plugin of the kubelet (credentialprovider.kubelet.k8s.io/v1).

Source: kubernetes/kubelet ``pkg/apis/credentialprovider/v1/types.go``. The plugin gets the image
without its tag, and answers with credentials by patterns of images.
"""

import asyncio
import json
import re
from fnmatch import fnmatchcase
from functools import partial
from typing import Final

from yarl import URL

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import Credential, host_of, path_of
from proxy.upstream.credentials.program import Program, read_answer, run
from proxy.upstream.credentials.renewing import Issued, RenewingCache

VERSION: Final = "credentialprovider.kubelet.k8s.io/v1"
MAX_RUNNING: Final = 2
"""Runs of one plugin at a time."""

MAX_WAITING: Final = 32
"""Images that wait for a run. Clients may invent names, and others wait behind them."""

_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class KubeletPlugin:
    """The answers of a plugin for images of the registry at ``url``.

    An answer, empty or not, is cached for the image, or for the registry if the plugin states that.
    Without ``cacheDuration`` the plugin runs again after ``default_life`` seconds. Requests for one
    image share a run, and only a few plugins run at a time.
    """

    kind: Final = "kubelet"

    def __init__(self, program: Program, url: URL, default_life: float | None) -> None:
        self._program = program
        self._url = url
        self._default_life = default_life
        self._is_by_image = True
        self._slots = asyncio.Semaphore(MAX_RUNNING)
        self._asking = 0
        self._answers: RenewingCache[dict[str, Credential]] = RenewingCache(self.kind)

    async def get(self, repository: str) -> Credential | None:
        """Return the credential of the most specific pattern that matches, None without one."""
        image = self._image(repository)
        answer = await self._answers.get(self._key(image), partial(self._ask, image))
        matching = (key for key in sorted(answer, reverse=True) if matches(key, image))
        key = next(matching, None)
        return None if key is None else answer[key]

    async def renew(self, repository: str, refused: Credential) -> Credential | None:
        """Ask the plugin again if its last answer holds the refused credential."""
        image = self._image(repository)
        ask, key = partial(self._ask, image), self._key(image)
        answer = await self._answers.get(key, ask)
        if refused in answer.values():
            await self._answers.renew(key, ask, answer)
        return await self.get(repository)

    @property
    def expires_in(self) -> float | None:
        """Seconds until the plugin is asked again."""
        return self._answers.expires_in

    async def close(self) -> None:
        """Cancel running plugins."""
        await self._answers.close()

    def _image(self, repository: str) -> str:
        return f"{host_of(self._url)}/{path_of(self._url, repository)}".rstrip("/")

    def _key(self, image: str) -> str:
        return image if self._is_by_image else ""

    async def _ask(self, image: str) -> Issued[dict[str, Credential]]:
        """Run the plugin for an image. Raises ``CredentialsRejected``."""
        if self._asking >= MAX_RUNNING + MAX_WAITING:
            raise CredentialsRejected(f"{self._program.name} has to run for too many images")
        self._asking += 1
        try:
            async with self._slots:
                return await self._run(image)
        finally:
            self._asking -= 1

    async def _run(self, image: str) -> Issued[dict[str, Credential]]:
        request = {"apiVersion": VERSION, "kind": "CredentialProviderRequest", "image": image}
        document = read_answer(self._program, await run(self._program, json.dumps(request)))
        kind: Final = document.get("cacheKeyType")
        if document.get("apiVersion") != VERSION or kind not in ("Image", "Registry", "Global"):
            raise CredentialsRejected(
                f"{self._program.name} prints no CredentialProviderResponse of {VERSION}"
            )
        self._is_by_image = kind == "Image"
        life = _seconds(document.get("cacheDuration"))
        return Issued(_read_auth(document), self._default_life if life is None else life)


def matches(pattern: str, image: str) -> bool:
    """Return True if a key of ``auth`` stands for an image (types.go, ``Auth``).

    Hosts have the same number of labels, and each label matches its pattern; ports are equal; the
    path begins with that of the pattern.
    """
    host, _, path = pattern.removeprefix("https://").partition("/")
    image_host, _, image_path = image.partition("/")
    host, _, port = host.partition(":")
    image_host, _, image_port = image_host.partition(":")
    labels, image_labels = host.split("."), image_host.split(".")
    return (
        port == image_port
        and image_path.startswith(path)
        and len(labels) == len(image_labels)
        and all(map(fnmatchcase, image_labels, labels))
    )


def _read_auth(document: dict[str, object]) -> dict[str, Credential]:
    auth = document.get("auth")
    found = {}
    for pattern, entry in (auth if isinstance(auth, dict) else {}).items():
        username, password = (
            (entry.get("username"), entry.get("password")) if isinstance(entry, dict) else ("", "")
        )
        if isinstance(username, str) and isinstance(password, str) and password:
            found[pattern] = Credential(username, password)
    return found


def _seconds(duration: object) -> float | None:
    """Return a duration of Go (``5m0s``) in seconds, None if there is none.

    ``0s`` is a hundredth of a second, which the least life of a credential prolongs.
    """
    if not isinstance(duration, str) or not _DURATION.fullmatch(duration):
        return None
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(duration))
    return max(total, 0.01)
