"""Kubernetes objects of any kind, custom resources included.

The kubelet pulls ``image`` of a container, and ``reference`` of an image volume. Operators pull the
images in their custom resources (``image``, ``sidecarImage``, or a mapping with ``repository`` and
``tag``) and in the variables ``RELATED_IMAGE_…`` of the operator (Operator Framework, "disconnected
environments").
"""

from collections.abc import Iterable
from typing import Final

from proxy.services.image_files.documents import fields
from proxy.services.image_files.references import is_reference, is_surely_reference
from proxy.services.image_files.results import FoundReferences

_RELATED: Final = "RELATED_IMAGE_"
_SCHEMAS: Final = "CustomResourceDefinition"
_NOT_DESIRED: Final = ("metadata", "status")
"""Annotations repeat older versions of an object, and ``status`` lists images of the past."""


def read(documents: Iterable[object], name: str) -> FoundReferences:
    """Return the images of Kubernetes objects. Raises ``RequestInvalid``."""
    found = FoundReferences()
    for document in documents:
        for each in _objects(document):
            _read_object(each, name, found)
    return found


def _objects(document: object) -> list[dict[str, object]]:
    """Return one object, or those of a ``List``, without the parts that need no image."""
    if not isinstance(document, dict) or document.get("kind") == _SCHEMAS:
        return []
    kind, items = document.get("kind"), document.get("items")
    if isinstance(items, list) and isinstance(kind, str) and kind.endswith("List"):
        return [each for item in items for each in _objects(item)]
    return [{key: value for key, value in document.items() if key not in _NOT_DESIRED}]


def _read_object(each: dict[str, object], name: str, found: FoundReferences) -> None:
    place = f"{name}: {each.get('kind', 'object')}"
    for key, value, holder in fields(each, name):
        match value:
            case str() if key == "image":
                _add(value, place, found)
            case str() if key == "reference" and isinstance(holder.get("pullPolicy", ""), str):
                if _is_image_volume(holder):
                    _add(value, place, found)
            case str() if key.endswith("Image") and is_surely_reference(value):
                found.add(value)
            case str() if key == "value" and str(holder.get("name")).startswith(_RELATED):
                _add(value, place, found)
            case dict() if key.lower().endswith("image"):
                _add_parts(value, found)


def _add(text: str, place: str, found: FoundReferences) -> None:
    text = text.strip()
    if is_reference(text):
        found.add(text)
    elif text:
        found.problems.append(f"{place}: no image: {text[:80]!r}")


def _is_image_volume(holder: dict[str, object]) -> bool:
    """Return True for the source of an image volume (KEP-4639)."""
    return holder.keys() <= {"reference", "pullPolicy"}


def _add_parts(parts: dict[object, object], found: FoundReferences) -> None:
    """Add an image that charts and operators write as registry, repository, tag and digest."""
    repository = parts.get("repository")
    if not isinstance(repository, str) or not repository:
        return
    registry = parts.get("registry")
    name = f"{registry}/{repository}" if isinstance(registry, str) and registry else repository
    tag, digest = parts.get("tag"), parts.get("digest") or parts.get("sha")
    if isinstance(digest, str) and digest:
        name += f"@{digest if ':' in digest else f'sha256:{digest}'}"
    elif isinstance(tag, str | int | float) and tag != "":
        name += f":{tag}"
    if is_reference(name):
        found.add(name)
