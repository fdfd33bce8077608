"""Compose files: the images of services, and those that their builds need.

Specification: https://github.com/compose-spec/compose-spec. All profiles are included: a lab may
need each. ``extends`` and ``include`` are followed, if other files may be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from proxy.core.errors import RequestInvalid
from proxy.services.image_files import dockerfile
from proxy.services.image_files.documents import load_all
from proxy.services.image_files.references import is_reference
from proxy.services.image_files.results import Build, FoundReferences
from proxy.services.image_files.variables import expand

_MAX_FILES: Final = 50
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_CONTEXT_IMAGE: Final = "docker-image://"
_LOCAL_ONLY: Final = ("never", "build")

Mapped = dict[str, object]


def read(document: object, name: str, build: Build) -> FoundReferences:
    """Return the images of a Compose file. Raises ``RequestInvalid``."""
    reader = _Reader(build)
    variables = _environment(build.folder, build)
    reader.read(_mapping(document), _Place(name, build.folder, variables))
    return reader.found


@dataclass(frozen=True, slots=True)
class _Place:
    """A Compose file: its name, its folder (None: read no others), and its variables."""

    name: str
    folder: Path | None
    variables: Mapping[str, str]


@dataclass(slots=True)
class _Reader:
    build: Build
    found: FoundReferences = field(default_factory=FoundReferences)
    _files: int = 0

    def read(self, document: Mapped, place: _Place) -> None:
        """Read the services of a file, and the files that it includes."""
        for included in _list(document.get("include")):
            paths = included.get("path") if isinstance(included, dict) else included
            for path in _list(paths):
                if (other := self._load(str(path), place)) is not None:
                    self.read(*other)
        for name, service in _mapping(document.get("services")).items():
            where = f"{place.name}: service {name}"
            try:
                self._service(_mapping(service), where, place, document)
            except (ValueError, RequestInvalid) as error:
                self.found.problems.append(f"{where}: {error}")

    def _service(self, service: Mapped, where: str, place: _Place, document: Mapped) -> None:
        service, place = self._extended(service, place, document)
        platform = service.get("platform")
        wanted = self._expanded(platform, place) if isinstance(platform, str) else None
        for volume in _list(service.get("volumes")):
            if isinstance(volume, dict) and volume.get("type") == "image":
                self._add(volume.get("source"), wanted, place)
        if (recipe := service.get("build")) is not None:
            self._built(recipe, wanted, where, place)
        elif service.get("pull_policy") not in _LOCAL_ONLY and "image" in service:
            self._add(service["image"], wanted, place)

    def _extended(self, service: Mapped, place: _Place, document: Mapped) -> tuple[Mapped, _Place]:
        """Return a service with its inherited values; its own values take precedence."""
        for _ in range(_MAX_FILES):
            extends = service.get("extends")
            if extends is None:
                return service, place
            parts = extends if isinstance(extends, dict) else {"service": extends}
            if (file := parts.get("file")) is not None:
                other = self._load(str(file), place)
                if other is None:
                    return {**service, "extends": None}, place
                document, place = other
            parent = _mapping(_mapping(document.get("services")).get(str(parts.get("service"))))
            service = {**parent, **service, "extends": parent.get("extends")}
        raise ValueError("extends itself")

    def _built(self, recipe: object, platform: str | None, where: str, place: _Place) -> None:
        """Add the images that a build pulls: those of its Dockerfile and of its contexts."""
        parts = _mapping(recipe) if isinstance(recipe, dict) else {"context": recipe}
        for source in _values(parts.get("additional_contexts")):
            text = self._expanded(source, place)
            if text.startswith(_CONTEXT_IMAGE):
                self._add(text.removeprefix(_CONTEXT_IMAGE), platform, place)
        arguments = {
            key: self._expanded(value, place) for key, value in _pairs(parts.get("args")).items()
        }
        build = replace(
            self.build,
            arguments={**arguments, **self.build.arguments},
            target=platform or self.build.target,
        )
        inline = parts.get("dockerfile_inline")
        if isinstance(inline, str):
            self.found.include(dockerfile.read(inline, f"{where}: dockerfile_inline", build))
            return
        context = self._expanded(parts.get("context", "."), place)
        file = self._expanded(parts.get("dockerfile", "Dockerfile"), place)
        path = context if _is_remote(context) else str(Path(context) / file)
        if (instructions := self._text(path, place)) is not None:
            self.found.include(dockerfile.read(instructions, path, build))

    def _add(self, image: object, platform: str | None, place: _Place) -> None:
        name = self._expanded(image, place)
        if not is_reference(name):
            raise ValueError(f"no image: {name[:80]!r}")
        self.found.add(name, platform)

    def _expanded(self, value: object, place: _Place) -> str:
        return expand(str(value), place.variables, escape="$")

    def _load(self, path: str, place: _Place) -> tuple[Mapped, _Place] | None:
        """Return another Compose file, None if it cannot be read: that is a problem then."""
        path = self._expanded(path, place)
        text = self._text(path, place)
        if text is None or place.folder is None:
            return None
        documents = load_all(text, path)
        folder = (place.folder / path).parent
        variables = {**_environment(folder, self.build), **place.variables}
        return _mapping(documents[0] if documents else {}), _Place(path, folder, variables)

    def _text(self, path: str, place: _Place) -> str | None:
        self._files += 1
        if self._files > _MAX_FILES:
            raise RequestInvalid(f"more than {_MAX_FILES} files")
        if place.folder is None or _is_remote(path):
            self.found.problems.append(f"{place.name}: {path}: is not read here")
            return None
        try:
            return _read_file(place.folder / path)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            self.found.problems.append(f"{place.name}: {path}: cannot be read: {reason}")
            return None


def _read_file(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise RequestInvalid(f"{path}: longer than {_MAX_FILE_BYTES} bytes")
    return content.decode()


def _environment(folder: Path | None, build: Build) -> dict[str, str]:
    """Return the variables of ``.env`` in the folder; the environment takes precedence."""
    path = None if folder is None else folder / ".env"
    named = dotenv_values(path) if path is not None and path.is_file() else {}
    return {key: value or "" for key, value in named.items()} | dict(build.variables)


def _is_remote(path: str) -> bool:
    return "://" in path or path.startswith("git@")


def _mapping(value: object) -> Mapped:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _values(value: object) -> list[object]:
    """Return the values of a mapping, or of a list of ``key=value``."""
    return list(_pairs(value).values())


def _pairs(value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return {str(key): inner for key, inner in value.items() if inner is not None}
    pairs = (str(entry).partition("=") for entry in _list(value))
    return {key: inner for key, equals, inner in pairs if equals}
