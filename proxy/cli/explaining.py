"""``millpond explain``: how Millpond handles an image, and why."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from proxy.cli.command import JsonOption, Work, on_server
from proxy.cli.formatting import age, count, moment, print_line
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

PATH: Final = "/-/api/v1/explain"
_LABEL: Final = 11
_PULLS: Final = {
    "serve": "served from the cache",
    "serve-then-check": "served from the cache, then checked in the background",
    "check": "checked at the registry first",
    "confirm": "confirmed by the registry first",
    "fetch": "fetched from the registry",
    "stale": "served from the cache, out of date",
    "refuse": "answered with an error",
}


@on_server
def explain(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="As nginx:1.27, or by digest.")],
    user: Annotated[
        str | None,
        typer.Option("--as", metavar="USER[,GROUP]", help="Show what this user may pull."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Client address, for rules with networks.")
    ] = None,
    ns: Annotated[
        str | None, typer.Option("--ns", help="The ns of a request; IMAGE is then its path.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="The Host of a request; IMAGE is then its path.")
    ] = None,
    as_json: JsonOption = False,
) -> Work:
    """Explain how Millpond handles an image.

    Shows the route and how it was chosen, the content in the cache and its freshness, the result of
    a pull now and offline, who may pull it, and why it is kept or evicted. Contacts no registry.
    """
    given = {"image": image, "user": user, "address": address, "ns": ns, "host": host}
    query = {name: value for name, value in given.items() if value is not None}

    async def work(client: "Client") -> int:
        found = await client.ask("GET", PATH, query)
        if as_json:
            typer.echo(json.dumps(found))
            return 0
        print_line(found["image"])
        for label, lines in _sections(found):
            for number, line in enumerate(lines):
                print_line(f"  {'' if number else label:{_LABEL}}{line}")
        return 0

    return work


def _sections(found: "Document") -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of an explanation, each with its label."""
    yield "route", [_route(found["route"])]
    yield "registry", list(_registry(found["registry"]))
    yield "held", list(_held(found["held"]))
    if found["freshness"] is not None:
        yield "freshness", list(_freshness(found["freshness"]))
    pull = found["pull"]
    costs = f" ({', '.join(pull['costs'])})" if pull["costs"] else ""
    yield "pull now", [f"{_PULLS.get(pull['answer'], pull['answer'])}: {pull['because']}{costs}"]
    offline = found["offline"]
    yield "offline", [f"{'served' if offline['is_served'] else 'refused'}: {offline['because']}"]
    yield "access", [_access(one) for one in found["access"]]
    yield "policies", [_policy(one) for one in found["policies"]] or ["none covers it"]
    yield "eviction", list(_keeping(found["keeping"]))


def _route(route: Any) -> str:
    reasons = {
        "ns": f"ns={route['text']}",
        "host": f"the host name {route['text']}",
        "name": f"the name begins with {route['text']}",
        "default": "the name has no registry: default_upstream",
    }
    where = f"{route['upstream']} ({route['url']}), repository {route['repository']}"
    return f"{where}: {reasons.get(route['by'], route['by'])}"


def _registry(registry: Any) -> Iterator[str]:
    login = {"none": "none, anonymous", "caller": "the login of each client"}
    kind = login.get(registry["credentials"], registry["credentials"])
    yield f"scope {registry['scope']}, credentials: {kind}"
    if registry["offline"]:
        yield f"offline ({registry['offline_mode']}): it is not contacted"
    elif registry["circuit"] != "closed":
        yield f"it is failing: its circuit is {registry['circuit']}"
    if (limit := registry["rate_limit"]) is not None:
        rest = "; the rest is reserved for new images" if limit["is_scarce"] else ""
        yield f"rate limit: {limit['remaining']:,} of {limit['limit']:,} pulls are left{rest}"
    if registry["sources"]:
        yield f"sources before it: {', '.join(registry['sources'])}"


def _held(held: Any) -> Iterator[str]:
    if held["digest"] is None:
        yield "nothing: the image is not in the cache"
        return
    yield f"{held['digest']}: {held['state']}, {show_size(held['held_bytes'])}"
    if held["state"] != "absent" and not held["is_linked"]:
        yield "not confirmed for this repository"
    for part in held["parts"]:
        name = "" if part["platform"] is None else f"{part['platform']}: {part['state']}, "
        size = f"{name}{show_size(part['held_bytes'])} held"
        if part["state"] == "absent":
            yield f"{part['platform']}: absent"
        elif part["missing_pieces"]:
            missing = count(part["missing_pieces"], "piece")
            yield f"{size}, {missing} missing ({show_size(part['missing_bytes'])})"
        elif name:
            yield size


def _freshness(fresh: Any) -> Iterator[str]:
    if fresh["as_of"] is not None:
        yield f"as_of: the tag shows {moment(fresh['as_of'])}"
    if fresh["checked_at"] is None:
        yield "the registry was never asked for this tag"
        return
    yield f"checked {moment(fresh['checked_at'])}, {age(fresh['checked_at'])} ago"
    times = {
        "fresh_until": "fresh until {}",
        "served_until": "served while it is checked until {}",
        "kept_until": "served if the registry fails until {}",
    }
    said = [text.format(_until(fresh[name])) for name, text in times.items()]
    yield ", ".join(said)
    if fresh["changed_by"] is not None:
        yield fresh["changed_by"]
    if fresh["held_back_until"] is not None:
        yield f"min_age holds {fresh['newest']} until {moment(fresh['held_back_until'])}"


def _until(seconds: float | None) -> str:
    return "further notice" if seconds is None else moment(seconds)


def _access(verdict: Any) -> str:
    who = "anonymous clients" if verdict["user"] is None else f"user {verdict['user']}"
    if verdict["address"] is not None:
        who += f" from {verdict['address']}"
    rule = "" if verdict["rule"] is None else f"rule {verdict['rule']}: "
    login = "; a login may help" if verdict["login_helps"] else ""
    allowed = "allowed" if verdict["allowed"] else "denied"
    return f"{who}: {allowed} ({rule}{verdict['text']}){login}"


def _policy(policy: Any) -> str:
    outcomes = {True: "denied", False: "allowed", None: "not checked yet"}
    outcome = outcomes[policy["denied"]]
    trial = ", only logged" if policy["audit"] else ""
    reason = f": {policy['reason']}" if policy["reason"] else ""
    return f"{policy['name']} ({'; '.join(policy['demands'])}): {outcome}{trial}{reason}"


def _keeping(keeping: Any) -> Iterator[str]:
    if keeping["pinned_by"]:
        refused = f"; not honoured: {keeping['pin_refused']}" if keeping["pin_refused"] else ""
        yield f"pinned by {', '.join(keeping['pinned_by'])}{refused}"
    if keeping["in_use_by"]:
        yield f"in use, as {', '.join(keeping['in_use_by'])} reports"
    used, limit = show_size(keeping["used_bytes"]), show_size(keeping["limit_bytes"])
    above = show_size(keeping["evicts_above_bytes"])
    if keeping["last_used"] is None:
        yield "nothing to evict"
    elif keeping["is_protected"]:
        yield "it is not evicted"
    else:
        when = "the next eviction removes it" if keeping["is_next"] else "older content goes first"
        yield f"last used {age(keeping['last_used'])} ago: {when}"
        if keeping["oldest_use"] is not None:
            yield f"the oldest use of any content was {age(keeping['oldest_use'])} ago"
    if keeping["expires_at"] is not None:
        yield f"unused, it is evicted at {moment(keeping['expires_at'])} (max_age)"
    yield f"the cache takes {used} of {limit}; eviction begins above {above}"
