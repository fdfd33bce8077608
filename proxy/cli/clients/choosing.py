"""Finds the Millpond that clients are set up for: in the settings, or by asking its address."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from proxy.cli.client import ErrorAnswer, NoAnswer
from proxy.cli.clients.instance import (
    Instance,
    Login,
    Registry,
    chosen,
    configured,
    own_address,
    parse_address,
)
from proxy.cli.command import ServerOptions
from proxy.cli.connect import at_address
from proxy.cli.formatting import print_error
from proxy.core.errors import ConfigError
from proxy.settings import loading
from proxy.settings.upstreams import check_name


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """The options that select the instance."""

    address: str | None
    upstreams: tuple[str, ...]
    config: Path | None
    ca_file: Path | None
    login: Login | None


def instance(setup: SetupOptions) -> Instance:
    """Return the instance. Raises ``ConfigError``.

    There are two cases. Without an address, or with a configuration in addition to it, the settings
    have everything. An address alone may be on another machine, whose settings are not available:
    the server reports its registries, and whether it requires a login.
    """
    ca = _text(setup.ca_file, "--ca-file") if setup.ca_file is not None else None
    if ca is not None and "-----BEGIN CERTIFICATE-----" not in ca:
        raise ConfigError(f"--ca-file: {setup.ca_file} holds no PEM certificate")
    url = parse_address(setup.address) if setup.address is not None else None
    if url is not None and setup.config is None:
        registries, asks = asyncio.run(_asked(url, setup))
        return Instance(url, registries, ca=ca, login=setup.login, asks_for_login=asks)
    settings = loading.load(setup.config, {}, print_error)
    return Instance(
        url or own_address(settings),
        chosen(configured(settings), setup.upstreams),
        settings.default_upstream,
        ca,
        setup.login,
        settings.access.is_configured,
    )


def read_login(user: str | None, password_file: Path | None) -> Login | None:
    """Return the login of the options, None without one. Raises ``ConfigError``."""
    if (user is None) != (password_file is None):
        raise ConfigError("--user and --password-file go together")
    if user is None or password_file is None:
        return None
    password = _text(password_file, "--password-file").strip()
    if not password or not password.isprintable() or not user or ":" in user:
        raise ConfigError("--user has no colon, and --password-file holds one line of text")
    return Login(user, password)


async def _asked(url: URL, setup: SetupOptions) -> tuple[tuple[Registry, ...], bool]:
    """Return the registries of the server at an address, and whether clients have to log in.

    Registries that are named need no server. Raises ``ConfigError``.
    """
    named = tuple(_registry(name, "--upstream") for name in setup.upstreams)
    options = ServerOptions(None, None, str(url), None, setup.ca_file)
    try:
        async with at_address(options) as client:
            stats = await client.ask("GET", "/-/stats")
            known = tuple(_registry(name, "the answer") for name in stats["upstreams"])
            try:
                await client.read("GET", "/v2/")
            except ErrorAnswer as error:
                return chosen(known, setup.upstreams), error.status == 401
            return chosen(known, setup.upstreams), False
    except (NoAnswer, ErrorAnswer) as error:
        if named:
            print_error(f"warning: {error}; it is not known whether it asks for a login")
            return named, False
        raise ConfigError(f"{error}; name its registries with --upstream NAME") from None


def _registry(name: str, source: str) -> Registry:
    """Return a registry. Raises ``ConfigError`` for a name that would lead out of its file."""
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return Registry(name)


def _text(file: Path, option: str) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{option}: {file} cannot be read: {reason}") from None
