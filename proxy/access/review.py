"""Looks for rules that cannot work as they are written: faults, and warnings of ``check``."""

from collections.abc import Iterator
from typing import Final

from proxy.core.selection import ANY, NamePattern, is_pattern
from proxy.settings import Settings
from proxy.settings.access import Access, Rule

_EVERY_IMAGE: Final = (ANY, f"{ANY}/{ANY}")


def faults(access: Access) -> Iterator[str]:
    """Yield what is wrong with rules whatever clients do."""
    for number, rule in enumerate(access.rules, 1):
        for name in _named(rule, "network"):
            if not _is_any_like(name, access.networks):
                yield (
                    f"access.rules: rule {number}: network:{name} is not among access.networks; "
                    f"add it there, for example networks: {{{name.strip('*')}: [10.0.0.0/8]}}"
                )


def warnings(settings: Settings) -> Iterator[str]:
    """Yield what is probably not meant."""
    access = settings.access
    for number, rule in enumerate(access.rules, 1):
        found = (
            *_without_members(access, rule),
            *_without_upstream(settings, rule),
            *_without_mirror_clients(settings, rule),
        )
        yield from (f"access.rules: rule {number}: {text}" for text in found)
    yield from _unreachable(access)
    if access.rules and not any(rule.allow == "pull" for rule in access.rules):
        yield "access.rules: no rule allows a pull, so nobody may pull; add {allow: pull}"


def _without_members(access: Access, rule: Rule) -> Iterator[str]:
    """Yield the entries of ``to`` that no client can match."""
    has_claims = any(issuer.groups_claim is not None for issuer in access.oidc)
    for name in _named(rule, "group"):
        if not (access.tokens_file or has_claims or _is_any_like(name, access.groups)):
            yield (
                f"nobody is in group:{name}; list it in access.groups, or configure tokens_file, "
                "or oidc with groups_claim"
            )
    has_users = access.htpasswd_file or access.tokens_file or access.oidc
    if _named(rule, "user") and not (has_users or access.client_certificates):
        yield (
            "there are no users; configure htpasswd_file, tokens_file, oidc or client_certificates"
        )


def _without_upstream(settings: Settings, rule: Rule) -> Iterator[str]:
    """Yield the patterns that begin with a registry that is not configured."""
    known = {
        name
        for upstream, entry in settings.upstreams.items()
        for name in (upstream, *entry.aliases, *entry.hostnames)
    }
    for pattern in rule.images:
        first, slash, _ = pattern.partition("/")
        is_registry = slash and not is_pattern(first) and ("." in first or ":" in first)
        if is_registry and first.lower() not in known:
            yield f"{pattern}: {first} is not among the upstreams"


def _without_mirror_clients(settings: Settings, rule: Rule) -> Iterator[str]:
    """Warn of users only for images that Docker pulls from its mirrors.

    dockerd sends a mirror no login but the one of Docker Hub, and silently pulls from Docker Hub
    instead. Networks and client certificates work with every client.
    """
    if rule.allow != "pull" or not rule.to or settings.access.client_certificates is not None:
        return
    if _named(rule, "network") or not _may_select(rule, settings.default_upstream):
        return
    yield (
        f"no dockerd that uses Millpond as a mirror of {settings.default_upstream} can meet it, "
        "because dockerd sends its Docker Hub login only; add a network:, or client_certificates"
    )


def _may_select(rule: Rule, upstream: str) -> bool:
    """Return True if a pattern of the rule may select images of an upstream."""
    firsts = [pattern.partition("/")[0] for pattern in rule.images]
    return any(NamePattern.of(first).matches(upstream) for first in firsts)


def _unreachable(access: Access) -> Iterator[str]:
    """Yield the rules behind one that decides everything."""
    final: dict[bool, int] = {}
    for number, rule in enumerate(access.rules, 1):
        if (before := final.get(rule.is_admin)) is not None:
            yield f"access.rules: rule {number}: never used; rule {before} decides everything"
        elif not rule.to and any(pattern in _EVERY_IMAGE for pattern in rule.images):
            final[rule.is_admin] = number


def _named(rule: Rule, kind: str) -> list[str]:
    """Return the names of one kind in ``to``."""
    return [name for entry in rule.to for found, _, name in [entry.partition(":")] if found == kind]


def _is_any_like(pattern: str, names: dict[str, tuple[str, ...]]) -> bool:
    return any(map(NamePattern.of(pattern).matches, names))
