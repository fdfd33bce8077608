"""Make images and push them straight through a registry's HTTP API.

Every layer is a valid tar.gz and every `diff_id` true, so real clients unpack them.
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

from tests.parts.images import HERE, Descriptor, Format, Image, Index
from tests.parts.registry import Registry


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's gzipped tar and the digest of that tar unpacked."""

    data: bytes
    diff_id: str


def sha256(data: bytes) -> str:
    """Return the digest of the bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_of(path: str, content: bytes, mode: int = 0o644) -> Layer:
    """Return a layer that holds one file."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(content), mode
        tar.addfile(entry, io.BytesIO(content))
    data = tarred.getvalue()
    # Compressing pays only where tar's padding outweighs the content.
    level = 1 if len(data) < 1_000_000 else 0
    return Layer(gzip.compress(data, compresslevel=level, mtime=0), sha256(data))


def random_layer(name: str, size: int) -> Layer:
    """Return a layer of `size` incompressible bytes, the same for the same name."""
    return layer_of(f"data/{name}", random.Random(name).randbytes(size))


class Pusher:
    """Pushes into a registry as the one user who may."""

    def __init__(self, registry: Registry) -> None:
        self._host = urlsplit(registry.url).netloc
        self._tokens = registry.tokens

    def _send(
        self, repository: str, method: str, path: str, body: bytes = b"", content_type: str = ""
    ) -> str:
        """Send one request of a push; return the Location it is answered with."""
        token = self._tokens.issue(
            self._tokens.access.pusher, [f"repository:{repository}:pull,push"]
        )
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        connection = HTTPConnection(self._host, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        assert answer.status in {201, 202}, f"{method} {path} → {answer.status} {said!r}"
        return answer.headers["Location"]

    def blob(self, repository: str, media_type: str, data: bytes) -> Descriptor:
        """Push a blob."""
        digest = sha256(data)
        location = urlsplit(self._send(repository, "POST", f"/v2/{repository}/blobs/uploads/"))
        upload = f"{location.path}?{location.query}&digest={digest}"
        self._send(repository, "PUT", upload, data, "application/octet-stream")
        return Descriptor(media_type, digest, len(data))

    def manifest(self, repository: str, ref: str, media_type: str, body: object) -> tuple[str, int]:
        """Push a manifest under a tag, or under its digest when `ref` is empty."""
        data = json.dumps(body, indent=3).encode()
        digest = sha256(data)
        path = f"/v2/{repository}/manifests/{ref or digest}"
        self._send(repository, "PUT", path, data, media_type)
        return digest, len(data)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of."""

    form: Format
    layers: Sequence[Layer]
    architecture: str = HERE
    command: tuple[str, ...] = ("/data",)


def push_image(pusher: Pusher, repository: str, tag: str, recipe: Recipe) -> Image:
    """Push an image; with an empty tag by digest only."""
    form = recipe.form
    config = {
        "architecture": recipe.architecture,
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Cmd": list(recipe.command)},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in recipe.layers]},
        "history": [{"created_by": f"layer {n}"} for n in range(len(recipe.layers))],
    }
    configured = pusher.blob(repository, form.config, json.dumps(config).encode())
    layers = tuple(pusher.blob(repository, form.layer, layer.data) for layer in recipe.layers)
    body = {
        "schemaVersion": 2,
        "mediaType": form.manifest,
        "config": configured.json(),
        "layers": [layer.json() for layer in layers],
    }
    digest, size = pusher.manifest(repository, tag, form.manifest, body)
    return Image(
        repository, tag, form.manifest, digest, size, recipe.architecture, configured, layers
    )


def push_index(pusher: Pusher, repository: str, tag: str, recipes: Sequence[Recipe]) -> Index:
    """Push one image per recipe and the index over them, in the first one's format."""
    form = recipes[0].form
    images = tuple(push_image(pusher, repository, "", recipe) for recipe in recipes)
    body = {
        "schemaVersion": 2,
        "mediaType": form.index,
        "manifests": [
            {
                **Descriptor(image.media_type, image.digest, image.size).json(),
                "platform": {"architecture": image.architecture, "os": "linux"},
            }
            for image in images
        ],
    }
    digest, size = pusher.manifest(repository, tag, form.index, body)
    return Index(repository, tag, form.index, digest, size, images)
