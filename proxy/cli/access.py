"""``millpond access test``: which rule decides whether a user may pull an image."""

import json
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli.command import ConfigOption, JsonOption, parsed_option
from proxy.cli.formatting import UNKNOWN, fail, print_error, print_table
from proxy.core.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from proxy.access.principals import Principal

access = typer.Typer(help="Test the access rules.", no_args_is_help=True)


@access.callback()
def _access() -> None:
    """Look at the access rules."""


@access.command("test")
def decide(
    user: Annotated[str, typer.Argument(help="Name of the user; - for anonymous clients.")],
    image: Annotated[str, typer.Argument(help="Image, as in pull; its tag does not matter.")],
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="A group of the user, beside those in access.groups."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Client address, for rules with networks.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which rule decides whether a user may pull an image.

    Reads the settings only; the server may be running or not. Exit status 0: allowed; 1: denied.
    """
    from proxy.access.principals import Principal  # noqa: PLC0415 - only here, for a fast help

    if address is not None:
        parsed_option("--address", address, ip_address)
    name = None if user == UNKNOWN else user
    decided = _decided(Principal(address, name, groups=frozenset(group or ())), image, config)
    if as_json:
        typer.echo(json.dumps(decided))
    else:
        verdict = "allowed" if decided["allowed"] else "denied"
        rest = ("rule", "text", "because")
        cells = (UNKNOWN if decided[key] is None else str(decided[key]) for key in rest)
        print_table(("repository", "decision", *rest), [(decided["repository"], verdict, *cells)])
    raise typer.Exit(0 if decided["allowed"] else 1)


def _decided(claimed: "Principal", image: str, config: Path | None) -> dict[str, Any]:
    """Return the decision about an image, and who the principal is then."""
    from proxy.access.control import Policy  # noqa: PLC0415 - settings, which help does without
    from proxy.access.rules import Action  # noqa: PLC0415
    from proxy.core.routing import Router  # noqa: PLC0415
    from proxy.settings import loading  # noqa: PLC0415

    try:
        settings = loading.load(config, warn=print_error)
        router = Router(settings)
        policy = Policy.of(settings.access, router.parse_selector)
        target = router.parse_image(image).target
    except (ConfigError, RegistryError) as error:
        fail(error.message if isinstance(error, RegistryError) else str(error))
    if target is None:
        fail(f"{image}: rules are about repositories; name one, for example ghcr.io/acme/app")
    principal = policy.memberships.complete(claimed)
    decision = policy.rules.decide(principal, Action.PULL, target)
    return {
        "repository": str(target),
        "user": principal.user,
        "groups": sorted(principal.groups),
        "networks": sorted(principal.networks),
        "allowed": decision.is_allowed,
        "rule": decision.rule,
        "text": decision.text,
        "because": decision.because,
    }
