"""An OCI image layout as another Millpond leaves it."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.content import Content


def write_layout(
    root: Path, images: Mapping[str, Content], *, annotation: str = "dev.millpond.image"
) -> None:
    """Put images under their names, ``docker.io/library/app:latest``."""
    listed = []
    (root / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        everything = {digest: one.manifest for digest, one in image.manifests.items()} | dict(
            image.blobs
        )
        for digest, data in everything.items():
            blob_file(root, digest).write_bytes(data)
        described = {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": len(image.manifest),
        }
        listed.append(described | {"annotations": {annotation: name}})
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": listed}))
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def blob_file(root: Path, digest: str) -> Path:
    """Return where a blob lies."""
    return root / "blobs" / Path(*digest.split(":"))
