"""Dockerfiles: the images of ``FROM``, ``COPY --from``, ``RUN --mount=from=``, and the frontend.

Grammar: https://docs.docker.com/reference/dockerfile/. All stages count, also those that a build of
the last one does not need.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from proxy.services.image_files.references import is_reference
from proxy.services.image_files.results import Build, FoundReferences
from proxy.services.image_files.variables import expand

_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(\S+)\s*$")
_HEREDOC: Final = re.compile(r"<<(-?)\s*([\"']?)([A-Za-z_][A-Za-z0-9_.]*)\2")
_FLAG: Final = re.compile(r"--([a-z]+)=(\S+)\s*")
_WITH_HEREDOC: Final = ("RUN", "COPY", "ADD")
_EMPTY: Final = "scratch"


@dataclass(frozen=True, slots=True)
class _Instruction:
    line: int
    verb: str
    rest: str


@dataclass(slots=True)
class _File:
    """A Dockerfile that is being read: its stages so far, and its ARGs before the first stage."""

    name: str
    build: Build
    found: FoundReferences
    escape: str = "\\"
    stages: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)


def read(text: str, name: str, build: Build) -> FoundReferences:
    """Return the images of a Dockerfile."""
    file = _File(name, build, FoundReferences(), values=_platform_values(build))
    lines = text.removeprefix("\ufeff").splitlines()
    for key, value in _directives(lines):
        if key == "syntax":
            file.found.add(value, build.machine)
        elif key == "escape" and value in ("\\", "`"):
            file.escape = value
    for instruction in _instructions(lines, file.escape):
        try:
            _read_instruction(instruction, file)
        except ValueError as error:
            file.found.problems.append(
                f"{name}, line {instruction.line}: {instruction.verb}: {error}"
            )
    return file.found


def _platform_values(build: Build) -> dict[str, str]:
    """Return the variables that BuildKit sets for ``FROM``."""
    values = {}
    for prefix, platform in (("BUILD", build.machine), ("TARGET", build.target)):
        system, architecture, variant = [*platform.split("/"), "", ""][:3]
        values[f"{prefix}PLATFORM"] = platform
        values[f"{prefix}OS"] = system
        values[f"{prefix}ARCH"] = architecture
        values[f"{prefix}VARIANT"] = variant
    return values


def _directives(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the directives: comments of a certain form before everything else."""
    for line in lines:
        match = _DIRECTIVE.match(line.strip())
        if match is None:
            return
        yield match[1].lower(), match[2]


def _instructions(lines: list[str], escape: str) -> Iterator[_Instruction]:
    """Yield instructions with their continuation lines joined, without heredocs' bodies."""
    continued = re.compile(re.escape(escape) + r"[ \t]*$")
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        joined = ""
        following: tuple[int, str] | None = (number, line)
        while following is not None:
            piece = following[1]
            if piece.lstrip().startswith("#") or (joined and not piece.strip()):
                following = next(numbered, None) if joined else None
                continue
            joined += continued.sub("", piece)
            following = next(numbered, None) if continued.search(piece) else None
        verb, _, rest = joined.strip().partition(" ")
        verb, rest = (verb.upper(), rest.strip()) if "\t" not in verb else _split(joined)
        if verb == "ONBUILD":
            verb, rest = _split(rest)
        if verb:
            yield _Instruction(number, verb, rest)
        if verb in _WITH_HEREDOC:
            for dash, _, word in _HEREDOC.findall(rest):
                for _, inner in numbered:
                    if (inner.lstrip("\t") if dash else inner) == word:
                        break


def _split(text: str) -> tuple[str, str]:
    words = text.split(None, 1)
    return (words[0].upper(), words[1].strip()) if len(words) == 2 else (text.strip().upper(), "")


def _read_instruction(instruction: _Instruction, file: _File) -> None:
    """Read one instruction. Raises ``ValueError``."""
    match instruction.verb:
        case "ARG" if not file.stages:
            _read_arguments(instruction.rest, file)
        case "FROM":
            _read_from(instruction.rest, file)
        case "COPY":
            for key, value in _flags(instruction.rest)[0]:
                if key == "from":
                    _add(value, None, file)
        case "RUN":
            for key, value in _flags(instruction.rest)[0]:
                if key == "mount" and (source := _mounted_from(value)):
                    _add(source, None, file)


def _flags(rest: str) -> tuple[list[tuple[str, str]], str]:
    """Return the flags before the words of an instruction, and the words."""
    flags: list[tuple[str, str]] = []
    while match := _FLAG.match(rest):
        flags.append((match[1], match[2]))
        rest = rest[match.end() :]
    return flags, rest


def _read_arguments(rest: str, file: _File) -> None:
    """Set the ARGs of ``rest``. One without a value and default stays unset."""
    for match in re.finditer(r"([A-Za-z_]\w*)(?:=(\"[^\"]*\"|'[^']*'|\S*))?", rest):
        name, default = match[1], match[2]
        if name in file.build.arguments:
            file.values[name] = file.build.arguments[name]
        elif default is not None:
            file.values[name] = expand(_unquoted(default), file.values, escape=file.escape)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _read_from(rest: str, file: _File) -> None:
    flags, words_text = _flags(rest)
    words = words_text.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise ValueError(f"not understood: {rest[:80]}")
    try:
        image = expand(_unquoted(words[0]), file.values, escape=file.escape)
        platform = expand(dict(flags).get("platform", ""), file.values, escape=file.escape)
        _add(image, platform or None, file)
    finally:
        file.stages.append(words[2].lower() if len(words) == 3 else "")


def _mounted_from(mount: str) -> str | None:
    options = dict(option.partition("=")[::2] for option in mount.split(","))
    return options.get("from")


def _add(image: str, platform: str | None, file: _File) -> None:
    """Add an image unless it is a stage, by name or number, or the empty image."""
    if "$" in image:
        image = expand(image, file.values, escape=file.escape)
    if image.lower() in (_EMPTY, *filter(None, file.stages)):
        return
    if image.isdecimal() and int(image) < len(file.stages):
        return
    if not is_reference(image):
        raise ValueError(f"no image: {image[:80]!r}")
    file.found.add(image, platform if platform is not None else file.build.target)
