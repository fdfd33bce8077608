"""Is a bundle written and read as fast as a file is copied and hashed?

Beside each command, `cp` copies the bundle and `sha256sum` hashes the copy, on the same disk; all
of them end when the bytes are on the disk.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.rows import Row, at_least
from tests.parts.process import NOWHERE, hermetic, workdir

_LAYER = 500_000_000
_LAYERS = 20
_ROUNDS = 2
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_TAR = "application/vnd.oci.image.layer.v1.tar"
_NAME = "docker.io/library/large:1"


def run(bench: Bench) -> list[Row]:
    """Return the speed of export and import of an image of 10 GB, in MB/s."""
    size = _LAYER * _LAYERS / 1e6
    speeds: dict[str, list[float]] = {name: [] for name in ("export", "import", "copy", "copy 2")}
    with workdir("bundles") as root, ours.millpond(NOWHERE) as outside:
        layout, key, bundle = root / "layout", root / "key", root / "bundle.tar"
        _write_layout(layout)
        _millpond("import", layout, "--insecure", "--name", _NAME, "--storage", outside.storage)
        shutil.rmtree(layout)
        _millpond("key", "new", key)
        for _ in range(min(_ROUNDS, bench.rounds)):
            export = ("export", _NAME, "--all-platforms", "-o", bundle, "--key", key)
            speeds["export"].append(size / _millpond(*export, "--storage", outside.storage))
            speeds["copy"].append(size / _copied(bundle))
            with ours.millpond(NOWHERE) as lab:
                taken = ("import", bundle, "--trust", f"{key}.pub", "--storage", lab.storage)
                speeds["import"].append(size / _millpond(*taken))
            speeds["copy 2"].append(size / _copied(bundle))
            bundle.unlink()
    rival = "cp and sha256sum"
    return [
        Row(f"bundle_{name}", f"{name} of 10 GB", "MB/s", speeds[name], rival, speeds[copy], target)
        for name, copy, target in (
            ("export", "copy", at_least(0.7)),
            ("import", "copy 2", at_least(0.7)),
        )
    ]


def _write_layout(folder: Path) -> None:
    """Write an OCI image layout with one image of random layers."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob(json.dumps(config).encode(), _CONFIG),
        "layers": [blob(os.urandom(_LAYER), _TAR) for _ in range(_LAYERS)],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), _MANIFEST)]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _millpond(*arguments: object) -> float:
    """Run a command; return its seconds, until its files are on the disk."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, arguments)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    os.sync()
    return time.perf_counter() - start


def _copied(file: Path) -> float:
    """Copy a file with `cp` and hash the copy with `sha256sum`; return the seconds."""
    copy = file.with_name("copy")
    environment = hermetic(file.parent)
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", str(file), str(copy)], check=True, env=environment)
    os.sync()
    subprocess.run(["sha256sum", str(copy)], check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    copy.unlink()
    return seconds
