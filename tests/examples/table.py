"""What the examples of the documents need in order to run here. Extend this for a new example.

- ``PLACES``: text of the examples, and the field of ``World`` that replaces it.
- ``IMAGES``: what the registry has. ``FILES``: what is in the directory of the commands.
- ``BEFORE``: what a reader has done before a command. ``AFTER``: what undoes it for later ones.
  ``GIVEN``: what a reader types.
- ``FOREIGN``: YAML that is not Millpond's.
- ``UNRUN``: the only commands that are not executed, each with its reason.
"""

from dataclasses import dataclass
from typing import Any, Final

from proxy.app.doctor.registry import WELL_KNOWN

PLACES: Final = {
    "containerd --write": "write_option",
    "https://registry.example": "listing_registry",
    "https://cache.example.com": "url",
    "http://127.0.0.1:5000": "url",
    "127.0.0.1:5000": "address",
    "/etc/millpond": "etc",
    "/var/lib/millpond": "storage",
    "/media/stick": "home",
    "--config FILE": "config_option",
}

IMAGES: Final = {
    "acme/app": ("1.2",),
    "library/alpine": ("latest",),
    "library/nginx": ("latest", "1.27"),
    "library/python": ("3.12",),
    "org/app": ("latest", "1.0", "v1.2"),
    **{name.partition(":")[0]: (name.partition(":")[2],) for name in WELL_KNOWN.values()},
    "team/tool": ("latest",),
}

FILES: Final = {
    "images.txt": "nginx:1.27\nghcr.io/org/app:1.0   # ours\n",
    "compose.yaml": "services: {web: {image: 'nginx:1.27'}, app: {image: 'ghcr.io/org/app:1.0'}}\n",
    "Dockerfile": "ARG VERSION=3\nFROM python:${VERSION}\n",
    "k8s.yaml": (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n"
        "spec: {containers: [{name: web, image: 'nginx:1.27'}]}\n"
    ),
}

BEFORE: Final = {
    "docker rmi alpine": "docker pull alpine",
    "millpond key new": "rm $etc/key $etc/key.pub",
    "tar xf images.tar": "millpond pull nginx:1.27; millpond export nginx:1.27 -o images.tar",
    'echo "outside': "cp $etc/key.pub .",
    "millpond export -f": "rm -f images.tar",
    "skopeo copy oci:": """
millpond pull nginx
until grep --silent docker.io/library/nginx:latest $storage/index.json; do sleep 0.1; done""",
    "curl --header": "cp $etc/admin-token token",
    "millpond refresh": "millpond pull nginx:1.27",
    "millpond drop": "millpond pull nginx:1.27 ghcr.io/org/app",
    "millpond lock": "millpond pull nginx:1.27 ghcr.io/org/app:1.0",
}

AFTER: Final = {
    "openssl rand -hex 32 > /etc/millpond/hooks/hub": "echo $SECRET > $etc/hooks/hub",
    "curl --unix-socket /var/lib/millpond/admin.sock -X POST 'http://millpond/-/offline": (
        "curl --silent --unix-socket $storage/admin.sock -X POST "
        "'http://millpond/-/offline?value=configured'"
    ),
}

GIVEN: Final = {
    "millpond client containerd --write": "y\n",
    "millpond user passwd": "another long password\n",
    "millpond user add": "a long password\n",
}


@dataclass(frozen=True, slots=True)
class Unrun:
    """Commands that begin so are only parsed."""

    page: str
    command: str
    reason: str


FOREIGN: Final = {
    "docs/access.md": {
        "jobs": "a workflow of GitHub: tests/clients/test_recipes.py runs its steps"
    },
    "docs/clients.md": {"mirrors": "a file of k3s, which needs a cluster"},
    "docs/webhooks.md": {"notifications": "a file of docker-registry: tests/test_webhooks.py"},
}
"""For each page, the first key of a block, and why it is only parsed."""

ENVIRONMENT: Final = {"docs/webhooks.md": {"MILLPOND": "url", "SECRET": "secret"}}
"""For each page, the variables that its examples have, and the field of ``World``."""

CONTEXT: Final[dict[str, dict[str, Any]]] = {
    "docs/webhooks.md": {
        "upstreams": {
            name: {"url": f"https://{name}"}
            for name in ("harbor.example.com", "registry.gitlab.example.com", "lab.example.com")
        }
    }
}
"""For each page, settings that a reader has beside those of its examples."""

UNRUN: Final = (
    Unrun("docs/operating.md", "pip install", "tests/test_package.py installs it, offline"),
    Unrun("docs/operating.md", "docker build", "its base image is at Docker Hub"),
    Unrun("docs/operating.md", "docker run", "its image is built from one of Docker Hub"),
    Unrun("docs/clients.md", "docker buildx create", "Debian's docker has no buildx"),
    Unrun("docs/clients.md", "/kaniko/executor", "kaniko runs only in its image"),
    Unrun("docs/clients.md", "helm pull", "tests/clients/test_client_setup.py pulls a chart"),
    Unrun("docs/access.md", "millpond user add", "tests/clients/test_recipes.py: with the recipe"),
    Unrun("docs/access.md", "millpond token new", "tests/clients/test_recipes.py: with the recipe"),
    Unrun("docs/access.md", "docker login", "tests/clients/test_recipes.py: with the recipe"),
    Unrun("docs/access.md", "docker pull", "tests/clients/test_recipes.py: with the recipe"),
    Unrun("docs/policies.md", "cosign", "no Debian package; tests/data/cosign has what it writes"),
)
