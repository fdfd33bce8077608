"""How users name images: as names, patterns and catalogues, and in files of other tools."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from proxy.cli.formatting import fail
from proxy.core.platforms import own_platform

if TYPE_CHECKING:
    from proxy.services.image_files.results import FoundReferences

_CATALOG: Final = "/v2/_catalog"
_STANDARD_INPUT: Final = "-"

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[IMAGE|PATTERN|URL]...",
        help="As nginx:1.27 or 'ghcr.io/org/**:v1*'. https://registry/v2/_catalog stands for "
        "its repositories, or for those that the patterns after it select.",
    ),
]
FilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="List of images, Compose file, Kubernetes objects or Dockerfile; - is standard "
        "input. May be repeated.",
    ),
]
BuildArgsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--build-arg", metavar="NAME=VALUE", help="Value of an ARG of a Dockerfile. Repeatable."
    ),
]
NoReferrersOption = Annotated[
    bool, typer.Option("--no-referrers", help="Leave signatures, SBOMs and other referrers out.")
]


@dataclass(frozen=True, slots=True)
class WantedImage:
    """An image to fetch, for some platforms; none means all.

    ``is_listed``: it is a pattern among the repositories of a catalogue that the user names.
    """

    name: str
    platforms: tuple[str, ...]
    is_listed: bool = False


def gathered(
    names: Iterable[str] | None,
    files: Iterable[Path] | None,
    build_args: Iterable[str] | None,
    platforms: tuple[str, ...],
) -> tuple[dict[WantedImage, None], list[str]]:
    """Return the images and patterns to fetch, and the problems in files."""
    wanted_images, problems = _from_files(files or (), platforms, _arguments(build_args or ()))
    named = _with_registries(names)
    wanted_images.update(
        dict.fromkeys(WantedImage(name, platforms, listed) for name, listed in named)
    )
    return wanted_images, problems


def _arguments(pairs: Iterable[str]) -> dict[str, str]:
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals and name not in os.environ:
            fail(f"--build-arg: {name} has no value here; write {name}=VALUE")
        arguments[name] = value if equals else os.environ[name]
    return arguments


def _with_registries(names: Iterable[str] | None) -> Iterable[tuple[str, bool]]:
    """Yield names and patterns, and whether they follow the address of a catalogue.

    Those get its registry in front.
    """
    registry, has_patterns = None, True
    for name in names or ():
        if name.endswith(_CATALOG) and "://" in name:
            if not has_patterns:
                yield f"{registry}/**", True
            registry = name.partition("://")[2].removesuffix(_CATALOG)
            has_patterns = False
        else:
            has_patterns = True
            yield (name, False) if registry is None else (f"{registry}/{name}", True)
    if not has_patterns:
        yield f"{registry}/**", True


def _from_files(
    files: Iterable[Path], wanted: tuple[str, ...], arguments: dict[str, str]
) -> tuple[dict[WantedImage, None], list[str]]:
    """Return the images that files name, once each, and the problems in the files."""
    from proxy.core.errors import RegistryError  # noqa: PLC0415 - not needed for help

    wanted_images: dict[WantedImage, None] = {}
    problems: list[str] = []
    for file in files:
        try:
            for found in _found(file, wanted or (own_platform(),), arguments):
                for image in found.images:
                    platforms = wanted if image.platform is None else (image.platform,)
                    wanted_images.setdefault(WantedImage(image.name, platforms))
                problems += (one for one in found.problems if one not in problems)
        except RegistryError as error:
            problems.append(error.message)
    return wanted_images, problems


def _found(
    file: Path, platforms: Iterable[str], arguments: dict[str, str]
) -> Iterable["FoundReferences"]:
    """Yield what a file names, for each platform: in a Dockerfile this may differ."""
    from proxy.services import image_files  # noqa: PLC0415 - reads YAML
    from proxy.services.image_files.results import Build  # noqa: PLC0415

    is_input = str(file) == _STANDARD_INPUT
    name = "standard input" if is_input else str(file)
    try:
        text = sys.stdin.read() if is_input else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{name}: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}")
    folder = Path() if is_input else file.parent
    for platform in platforms:
        build = Build(own_platform(), platform, arguments, os.environ, folder)
        yield image_files.read(text, name, build)
