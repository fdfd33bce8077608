"""``millpond import`` and ``millpond key``: import bundles, and create their keys."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from proxy.cli.command import ConfigOption, JsonOption, Work, on_server
from proxy.cli.formatting import count, fail, moment, print_error, print_line, print_table
from proxy.cli.progress import Bytes, byte_bar
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document
    from proxy.services.bundle.contents import BundledBlob
    from proxy.services.bundle.packages import Package
    from proxy.services.bundle.signatures import TrustedKey
    from proxy.services.bundle.trees import TreeFile

CONTENT: Final = "/-/content"
IMPORT: Final = "/-/import"
PLAN: Final = "/-/import-plan"
STEP: Final = 1024 * 1024
MAX_SHOWN: Final = 1000

keys = typer.Typer(help="Create keys that sign bundles.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """A package, and its content that the cache does not have."""

    package: "Package"
    to_send: "list[BundledBlob]"


@on_server
def import_bundle(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR",
            help="Bundle, OCI layout, archive of docker save, or storage directory of registry:2 "
            "or registry:3. Of a bundle in parts: any of them.",
        ),
    ],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Import without a signature by a trusted key.")
    ] = False,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            "--trust", metavar="FILE", help="Public keys to trust; else bundles.trusted_keys."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="IMAGE", help="Name for a single image without a full one."),
    ] = None,
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream", metavar="NAME", help="Registry of names without one, as in registry:2."
        ),
    ] = "docker.io",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify everything and import nothing.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> Work:
    """Import images from a bundle. All become visible together at the end, or none.

    Cached content is not transferred again, so a new run continues an interrupted import.
    """
    from proxy.core.errors import RequestInvalid  # noqa: PLC0415 - not for help
    from proxy.services.bundle.foreign import Naming  # noqa: PLC0415
    from proxy.services.bundle.packages import open_package  # noqa: PLC0415 - cryptography

    trusted = None if insecure else _trusted(trust or [], config)

    async def work(client: "Client") -> int:
        try:
            naming = Naming(name, upstream)
            package = await asyncio.to_thread(open_package, path, trusted, naming)
            try:
                return await _import(client, package, is_dry=dry_run, as_json=as_json)
            finally:
                package.tree.close()
        except RequestInvalid as error:
            print_error(f"{path}: {error.message}" if str(path) not in str(error) else str(error))
            return 1
        except OSError as error:
            print_error(f"{path}: cannot be read: {error.strerror}")
            return 1

    return work


@on_server
def imports(as_json: JsonOption = False) -> Work:
    """List the latest imports: when, from which cache, how many images."""

    async def work(client: "Client") -> int:
        found = (await client.ask("GET", IMPORT))["imports"]
        if as_json:
            for one in found:
                typer.echo(json.dumps(one))
            return 0
        rows = [
            (moment(one["at"]), one["source"], moment(one["created_at"]), str(len(one["images"])))
            for one in found
        ]
        print_table(("IMPORTED", "FROM", "BUNDLE OF", "IMAGES"), rows)
        return 0

    return work


@keys.command()
def new(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Private key; FILE.pub gets the public one.")
    ],
    comment: Annotated[
        str | None, typer.Option("--comment", help="Name of the key; default: user@host.")
    ] = None,
) -> None:
    """Create an Ed25519 key in OpenSSH format, which signs bundles.

    Importers of the bundles trust FILE.pub. Keep FILE secret: it has no passphrase.
    """
    from proxy.core.errors import ConfigError  # noqa: PLC0415 - not for help
    from proxy.services.bundle.signatures import write_key  # noqa: PLC0415 - cryptography

    try:
        fingerprint = write_key(path, comment or f"{getuser()}@{socket.gethostname()}")
    except ConfigError as error:
        fail(str(error))
    print_line(f"{path}: private key, keep it secret")
    print_line(f"{path}.pub: public key {fingerprint}, for bundles.trusted_keys of importers")


def _trusted(files: list[Path], config: Path | None) -> "list[TrustedKey]":
    """Return the keys that may have signed a bundle. Wrong files end the command."""
    from proxy.core.errors import ConfigError  # noqa: PLC0415 - not for help
    from proxy.services.bundle.signatures import read_public_keys  # noqa: PLC0415
    from proxy.settings import loading  # noqa: PLC0415

    try:
        paths = files or loading.load(config, {}, lambda _: None).bundles.trusted_keys
        return [key for path in paths for key in read_public_keys(path)]
    except ConfigError as error:
        fail(str(error))


async def _import(client: "Client", package: "Package", *, is_dry: bool, as_json: bool) -> int:
    """Send the missing content, then make all images visible."""
    for note in package.notes:
        print_error(note)
    found = await _compared(client, package)
    if is_dry:
        await _verify(package, as_json=as_json)
        _print_dry(found, as_json=as_json)
        return 0
    total = sum(blob.size for blob in found.to_send)
    with byte_bar("import", total, as_json=as_json) as bar:
        for blob in found.to_send:
            await _send(client, package, blob, bar)
    report = await client.ask("POST", IMPORT, body=package.contents.to_json())
    _print_report(report, package, total, as_json=as_json)
    return 0


async def _compared(client: "Client", package: "Package") -> _Found:
    """Return the content to send.

    Raises ``RequestInvalid`` with the digests that are missing, ``ErrorAnswer`` if there is no
    room.
    """
    from proxy.core.errors import RequestInvalid  # noqa: PLC0415 - not for help

    plan = await client.ask("POST", PLAN, body=package.contents.to_json())
    missing = set(plan["missing"])
    lacking = [blob.digest for blob in package.contents.left_out if blob.digest in missing]
    if lacking:
        shown = "\n".join(lacking[:MAX_SHOWN])
        raise RequestInvalid(
            f"{len(lacking):,} blobs are neither in the bundle nor in the cache; export again with "
            f"a new inventory:\n{shown}"
        )
    return _Found(package, [one for one in package.contents.included if one.digest in missing])


async def _verify(package: "Package", *, as_json: bool) -> None:
    """Hash the whole content of a package. Raises ``RequestInvalid``."""
    total = sum(blob.size for blob in package.contents.included)
    with byte_bar("verify", total, as_json=as_json) as bar:
        sizes = package.verify()
        while (size := await asyncio.to_thread(next, sizes, None)) is not None:
            bar.advance(size)


async def _send(client: "Client", package: "Package", blob: "BundledBlob", bar: Bytes) -> None:
    """Send one blob; the server hashes it. Raises ``ErrorAnswer``, ``RequestInvalid``."""
    file = package.open(blob)
    query = {"digest": blob.digest, "size": str(blob.size)}
    if blob.media_type is not None:
        query["media_type"] = blob.media_type
    try:
        await client.send(CONTENT, query, _read(file, bar), blob.size)
    finally:
        file.close()


async def _read(file: "TreeFile", bar: Bytes) -> AsyncIterator[bytes]:
    for start in range(0, file.size, STEP):
        data = await asyncio.to_thread(file.read, start, start + STEP)
        yield data
        bar.advance(len(data))


def _print_dry(found: _Found, *, as_json: bool) -> None:
    contents = found.package.contents
    size = sum(blob.size for blob in found.to_send)
    if as_json:
        names = [one.name for one in contents.tags]
        typer.echo(json.dumps({"event": "verified", "images": names, "bytes_to_import": size}))
        return
    for one in contents.tags:
        print_line(one.name)
    print_line(
        f"{found.package.kind}, verified: {count(len(contents.tags), 'image')}, "
        f"{count(len(found.to_send), 'blob')} of {show_size(size)} to import"
    )


def _print_report(report: "Document", package: "Package", sent: int, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"event": "done", **report, "imported_bytes": sent}))
        return
    for name in report["kept"]:
        print_line(f"{name}: unchanged, because this cache has a newer record than the bundle")
    for note in report["notes"]:
        print_error(note)
    signer = "" if package.signer is None else f", signed by {package.signer.name}"
    print_line(
        f"imported: {count(len(report['images']), 'image')} from {package.kind}{signer}, "
        f"{show_size(sent)} transferred"
    )
