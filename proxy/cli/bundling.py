"""``millpond inventory`` and ``millpond export``: content of the cache as a bundle."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from proxy.cli.command import ConfigOption, JsonOption, Work, on_server, parsed_option
from proxy.cli.formatting import count, fail, print_error, print_line
from proxy.cli.progress import Bytes, byte_bar
from proxy.cli.pulling import AllPlatformsOption, PlatformOption, chosen_platforms
from proxy.cli.selectors import (
    BuildArgsOption,
    FilesOption,
    NamesArgument,
    NoReferrersOption,
    gathered,
)
from proxy.core.units import parse_size, show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client
    from proxy.core.names import Digest
    from proxy.services.bundle.archive import Sink
    from proxy.services.bundle.contents import BundledBlob, Contents

INVENTORY: Final = "/-/inventory"
EXPORT: Final = "/-/export"
CONTENT: Final = "/-/content"
HEAD: Final = "# millpond inventory 1"
STEP: Final = 1024 * 1024
MAX_MANIFESTS: Final = 50_000
"""Manifests that stay in memory while a bundle is written. ``docker load`` finds no others."""

Signer = Callable[[bytes], str]
"""Returns the signature of a contents file."""


@on_server
def inventory(as_json: JsonOption = False) -> Work:
    """List the digests and sizes of all content, for export --missing-from on the other side."""

    async def work(client: "Client") -> int:
        if not as_json:
            print_line(HEAD)
        async for held in client.objects(INVENTORY, {}):
            typer.echo(json.dumps(held) if as_json else f"{held['digest']} {held['size']}")
        return 0

    return work


@on_server
def export(
    names: NamesArgument = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE|DIR/", help="Tar file to write, or a directory."
        ),
    ] = None,
    files: FilesOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All tagged images of the cache.")
    ] = False,
    pinned: Annotated[bool, typer.Option("--pinned", help="The pinned images.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="DATE",
            help="Only images whose tag has moved since then, as 2026-10-01 or "
            "2026-10-01T12:00:00Z.",
        ),
    ] = None,
    platforms: PlatformOption = None,
    all_platforms: AllPlatformsOption = False,
    no_referrers: NoReferrersOption = False,
    build_args: BuildArgsOption = None,
    missing_from: Annotated[
        Path | None,
        typer.Option(
            "--missing-from",
            metavar="INVENTORY",
            help="Leave out what the cache has whose millpond inventory this is.",
        ),
    ] = None,
    max_part_size: Annotated[
        str | None,
        typer.Option(
            "--max-part-size", metavar="SIZE", help="Split into FILE.001, FILE.002 and so on."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="Private key to sign with; else bundles.signing_key_file."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the bundle would contain; write nothing.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> Work:
    """Write images of the cache into a bundle for another cache.

    The bundle is an OCI image layout that skopeo, podman and docker read too. Exit status 1: a
    selected image is not complete in the cache, the rest was written; or none is selected.
    """
    if not (names or files or everything or pinned or since):
        fail("name images, or choose --all, --pinned, --since DATE or -f FILE")
    if output is None and not dry_run:
        fail("--output: name a file, or a directory with / at its end")
    max_part = None if max_part_size is None else _part_size(max_part_size)
    chosen = chosen_platforms(platforms, all_platforms=all_platforms) if platforms else []
    wanted_images, problems = gathered(names, files, build_args, tuple(chosen))
    selection: dict[str, object] = {
        "images": list(dict.fromkeys(wanted_image.name for wanted_image in wanted_images)),
        "all": everything or (since is not None and not wanted_images),
        "pinned": pinned,
        "since": None if since is None else parsed_option("--since", since, _moment),
        "platforms": chosen,
        "referrers": not no_referrers,
    }

    async def work(client: "Client") -> int:
        from proxy.services.bundle import contents as bundle  # noqa: PLC0415 - not for help

        answer = await client.ask("POST", EXPORT, body=json.dumps(selection).encode())
        found = await asyncio.to_thread(bundle.parse, answer["contents"].encode())
        for problem in (*problems, *answer["problems"]):
            print_error(problem)
        if not found.blobs:
            print_error("no image is selected, so nothing is written")
            return 1
        found.without(_digests(missing_from) if missing_from is not None else ())
        if output is not None and not dry_run:
            signer = _signer(key, config)
            await _write(client, _Writing(found, signer, as_json), output, max_part)
        _print_done(found, output, is_dry=dry_run, as_json=as_json)
        return 1 if problems or answer["problems"] else 0

    return work


def _part_size(text: str) -> int:
    from proxy.services.bundle.archive import MIN_PART  # noqa: PLC0415 - not for help

    size = parsed_option("--max-part-size", text, parse_size)
    if size < MIN_PART:
        fail(f"--max-part-size: at least {show_size(MIN_PART)}")
    return size


def _moment(text: str) -> float:
    """Return a Unix time. A date begins at midnight UTC. Raises ``ValueError``."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date; write 2026-10-01") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _digests(inventory: Path) -> Iterable[Any]:
    """Yield the digests of an inventory file. A wrong line ends the command."""
    from proxy.core.errors import DigestInvalid  # noqa: PLC0415 - not for help
    from proxy.core.names import parse_digest  # noqa: PLC0415

    try:
        with inventory.open() as lines:
            if lines.readline().rstrip() != HEAD:
                fail(f"{inventory}: no inventory; write one with: millpond inventory > FILE")
            for number, line in enumerate(lines, 2):
                try:
                    yield parse_digest(line.partition(" ")[0])
                except DigestInvalid as error:
                    fail(f"{inventory}, line {number}: {error.message}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        fail(f"{inventory}: cannot be read: {reason}")


def _signer(key: Path | None, config: Path | None) -> "Signer | None":
    """Return the signer of a contents file, None without a key. Raises ``ConfigError``."""
    from proxy.services.bundle import signatures  # noqa: PLC0415 - cryptography
    from proxy.settings import loading  # noqa: PLC0415

    path = key or loading.load(config, {}, lambda _: None).bundles.signing_key_file
    if path is None:
        print_error(
            "the bundle is not signed, so import refuses it without --insecure; make a key with: "
            "millpond key new FILE"
        )
        return None
    private = signatures.read_private_key(path)
    return lambda text: signatures.sign(text, private)


@dataclass(frozen=True, slots=True)
class _Writing:
    """A bundle that is to be written. ``signer`` None: without a signature."""

    contents: "Contents"
    signer: "Signer | None"
    as_json: bool


async def _write(client: "Client", writing: _Writing, output: str, max_part: int | None) -> None:
    """Write a bundle; an incomplete one is removed. Raises ``ConfigError``, ``NoAnswer``."""
    from proxy.core.errors import ConfigError  # noqa: PLC0415 - not for help
    from proxy.services.bundle import archive  # noqa: PLC0415

    sink = archive.open_sink(output, max_part)
    total = sum(blob.size for blob in writing.contents.included)
    try:
        with byte_bar("export", total, as_json=writing.as_json) as bar:
            await _write_files(client, writing, sink, bar)
        await asyncio.to_thread(sink.finish)
    except OSError as error:
        raise ConfigError(f"{error.filename or output}: {error.strerror}") from None
    finally:
        sink.discard()


async def _write_files(client: "Client", writing: _Writing, sink: "Sink", bar: Bytes) -> None:
    """Write the contents file and the files for other tools, then the blobs, manifests first."""
    from proxy.core.names import sha256  # noqa: PLC0415 - not for help
    from proxy.services.bundle import layout  # noqa: PLC0415
    from proxy.services.bundle.archive import put  # noqa: PLC0415
    from proxy.services.bundle.contents import NAME, SIGNATURE  # noqa: PLC0415

    contents = writing.contents
    bodies: dict[Digest, bytes] = {}
    for blob in contents.included:
        if blob.media_type is not None and len(bodies) < MAX_MANIFESTS:
            bodies[blob.digest] = await _body(client, blob)
    others = layout.files_for_others(contents, bodies)
    contents.files = {name: sha256(content) for name, content in others.items()}
    text = contents.to_json()
    put(sink, NAME, text)
    if writing.signer is not None:
        put(sink, SIGNATURE, writing.signer(text).encode())
    for name, content in others.items():
        put(sink, name, content)
    for blob in contents.included:
        if (body := bodies.pop(blob.digest, None)) is not None:
            put(sink, layout.blob_name(blob.digest), body)
            bar.advance(len(body))
        else:
            sink.begin(layout.blob_name(blob.digest), blob.size)
            await _copy(client, blob, sink.write, bar)


async def _body(client: "Client", blob: "BundledBlob") -> bytes:
    body = bytearray()
    await _copy(client, blob, body.extend, Bytes())
    return bytes(body)


async def _copy(
    client: "Client", blob: "BundledBlob", write: Callable[[bytes], object], bar: Bytes
) -> None:
    """Pass the bytes of a blob to ``write``, and hash them. Raises ``NoAnswer`` for others."""
    from proxy.cli.client import NoAnswer  # noqa: PLC0415 - aiohttp

    hasher = hashlib.new(blob.digest.partition(":")[0])
    size = 0

    def save(data: bytes) -> None:
        hasher.update(data)
        write(data)

    async for data in _steps(client.bytes_of(CONTENT, {"digest": blob.digest})):
        size += len(data)
        if size > blob.size:
            break
        await asyncio.to_thread(save, data)
        bar.advance(len(data))
    if size != blob.size or hasher.hexdigest() != blob.digest.partition(":")[2]:
        raise NoAnswer(
            f"{blob.digest}: the cache has other bytes than it should; run: "
            "millpond verify --repair, then export again"
        )


async def _steps(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the bytes of ``pieces`` in larger steps."""
    waiting: list[bytes] = []
    size = 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= STEP:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def _print_done(found: "Contents", output: str | None, *, is_dry: bool, as_json: bool) -> None:
    included = [*found.included]
    left_out = sum(1 for _ in found.left_out)
    size = sum(blob.size for blob in included)
    if as_json:
        document = {
            "event": "done",
            "images": [one.name for one in found.tags],
            "blobs": len(included),
            "bytes": size,
            "left_out": left_out,
            "output": output,
        }
        typer.echo(json.dumps(document))
        return
    if is_dry:
        for one in found.tags:
            print_line(one.name)
    others = f"; {left_out:,} left out, which the other side has" if left_out else ""
    verb = "would contain" if is_dry else "contains"
    where = "the bundle" if is_dry or output is None else output
    print_line(
        f"{where} {verb} {count(len(found.tags), 'image')}, {count(len(included), 'blob')}, "
        f"{show_size(size)}{others}"
    )
