"""Finds the images that files of other tools name: lists, Compose, Kubernetes, Dockerfiles.

Everything here is pure, except for files that a Compose file names. A part that cannot be parsed
becomes a problem with its place, and the rest is still found.
"""

import re
from typing import Final

from proxy.core.errors import RequestInvalid
from proxy.services.image_files import compose, dockerfile, kubernetes, lines
from proxy.services.image_files.documents import load_all
from proxy.services.image_files.results import Build, FoundReferences

MAX_BYTES: Final = 32 * 1024 * 1024
"""Maximum size of a file. A rendered chart with its CRDs has a few megabytes."""

_DOCKERFILE_NAME: Final = re.compile(r"(^|[./-])(dockerfile|containerfile)([.-]|$)", re.IGNORECASE)
_FIRST_INSTRUCTION: Final = re.compile(
    r"(?:\s*#[^\n]*\n|\s*\n)*\s*(?:FROM\s+(?:--platform=\S+\s+)?\S+|ARG\s+\w+(?:=\S*)?)"
    r"(?:\s+AS\s+\S+)?\s*(?:\n|$)",
    re.IGNORECASE,
)
_YAML_NAME: Final = (".yaml", ".yml", ".json")


def read(text: str, name: str, build: Build) -> FoundReferences:
    """Return the images that the file ``name`` with the content ``text`` names.

    The kind of the file follows from its content, and from its name for Dockerfiles. Raises
    ``RequestInvalid`` if it is longer than ``MAX_BYTES`` or is not what its name says.
    """
    if len(text) > MAX_BYTES:
        raise RequestInvalid(f"{name}: longer than {MAX_BYTES} bytes")
    if _DOCKERFILE_NAME.search(name.rpartition("/")[2]) or _FIRST_INSTRUCTION.match(text):
        return dockerfile.read(text, name, build)
    if name.endswith(_YAML_NAME) or _looks_like_yaml(text):
        return _from_yaml(text, name, build)
    return lines.read(text, name)


def _from_yaml(text: str, name: str, build: Build) -> FoundReferences:
    documents = load_all(text, name)
    if _is_compose(documents):
        return compose.read(documents[0], name, build)
    return kubernetes.read(documents, name)


def _is_compose(documents: list[object]) -> bool:
    """Return True for one document with services or includes that is no Kubernetes object."""
    if len(documents) != 1 or not isinstance(documents[0], dict) or "kind" in documents[0]:
        return False
    only = documents[0]
    return isinstance(only.get("services"), dict) or isinstance(only.get("include"), list)


def _looks_like_yaml(text: str) -> bool:
    """Return True for Kubernetes objects and Compose files."""
    if text.lstrip().startswith("{"):
        return True
    return re.search(r'^(?:\s*"?kind"?:\s|services:|include:)', text, re.MULTILINE) is not None
