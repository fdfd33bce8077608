"""Finds rules that cannot work as written: errors, and warnings of ``millpond check``."""

from collections.abc import Iterator
from typing import Final

from proxy.core.routing import Router
from proxy.core.selection import ANY, NamePattern, is_pattern
from proxy.settings import Settings
from proxy.settings.access import Access, Rule

_EVERY_IMAGE: Final = (ANY, f"{ANY}/{ANY}")
_HUB: Final = "docker.io"


def faults(access: Access) -> Iterator[str]:
    """Yield the errors in rules that do not depend on clients."""
    for number, rule in enumerate(access.rules, 1):
        for name in rule.named("network"):
            if not _is_any_like(name, access.networks):
                yield (
                    f"access.rules: rule {number}: network:{name} is not among access.networks; "
                    f"add it there, for example networks: {{{name.strip('*')}: [10.0.0.0/8]}}"
                )


def warnings(settings: Settings) -> Iterator[str]:
    """Yield the probable mistakes in settings whose patterns are valid."""
    access, router = settings.access, Router(settings)
    for number, rule in enumerate(access.rules, 1):
        found = (
            *_without_members(access, rule),
            *_without_upstream(settings, router, rule),
            *_without_mirror_clients(settings, router, rule),
        )
        yield from (f"access.rules: rule {number}: {text}" for text in found)
    yield from _without_anonymous(settings, router)
    yield from _unreachable(access)
    yield from _shared_names(access)
    yield from _callers_without_user(settings)
    if access.rules and not any(rule.allow == "pull" for rule in access.rules):
        yield "access.rules: no rule allows a pull, so nobody may pull; add {allow: pull}"


def _without_members(access: Access, rule: Rule) -> Iterator[str]:
    """Yield the entries of ``to`` that no client can match."""
    has_claims = any(issuer.groups_claim is not None for issuer in access.oidc)
    for name in rule.named("group"):
        if not (access.tokens_file or has_claims or _is_any_like(name, access.groups)):
            yield (
                f"nobody is in group:{name}; list it in access.groups, or configure tokens_file, "
                "or oidc with groups_claim"
            )
    has_users = access.htpasswd_file or access.tokens_file or access.oidc
    if rule.named("user") and not (has_users or access.client_certificates):
        yield (
            "there are no users; configure htpasswd_file, tokens_file, oidc or client_certificates"
        )


def _without_upstream(settings: Settings, router: Router, rule: Rule) -> Iterator[str]:
    """Yield the patterns that begin with a registry that is not configured."""
    for pattern in rule.images:
        first = _registry(router, pattern)
        if not is_pattern(first) and first not in settings.upstreams:
            yield f"{pattern}: {first} is not among the upstreams"


def _without_mirror_clients(settings: Settings, router: Router, rule: Rule) -> Iterator[str]:
    """Warn of users only for images that Docker pulls from its mirrors.

    dockerd sends a mirror no login but the one of Docker Hub, and silently pulls from Docker Hub
    instead. Networks and client certificates work with every client; containerd, Podman and
    BuildKit can send a login. docs/access.md has a table.
    """
    access = settings.access
    if rule.allow != "pull" or not rule.to or access.client_certificates is not None:
        return
    upstream = _mirrored_by_docker(settings, router, rule)
    if access.anonymous and upstream is not None and not rule.named("network"):
        yield (
            f"no dockerd that uses Millpond as a mirror of {upstream} can meet it, because dockerd "
            "sends its Docker Hub login only; add a network:, or client_certificates"
        )


def _without_anonymous(settings: Settings, router: Router) -> Iterator[str]:
    """Warn of a mirror for Docker that refuses all clients without a user."""
    access = settings.access
    if access.anonymous or access.client_certificates is not None:
        return
    rules = [rule for rule in access.rules if rule.allow == "pull"]
    upstreams = [
        _mirrored_by_docker(settings, router, rule) for rule in rules or [Rule(allow="pull")]
    ]
    if upstream := next(filter(None, upstreams), None):
        yield (
            f"access.anonymous: no dockerd can use Millpond as a mirror of {upstream}, because "
            "dockerd sends its Docker Hub login only; set it to true and limit rules to a "
            "network:, or add client_certificates"
        )


def _mirrored_by_docker(settings: Settings, router: Router, rule: Rule) -> str | None:
    """Return an upstream that the rule may select and that dockerd can have a mirror of.

    dockerd names no registry to a mirror: the default upstream answers, or Docker Hub under a host
    name that stands for it.
    """
    upstreams = [settings.default_upstream]
    if (hub := settings.upstreams.get(_HUB)) is not None and hub.hostnames:
        upstreams.append(_HUB)
    patterns = [NamePattern.of(_registry(router, pattern)) for pattern in rule.images]
    found = (name for name in upstreams if any(pattern.matches(name) for pattern in patterns))
    return next(found, None)


def _registry(router: Router, pattern: str) -> str:
    """Return the first component of the names that a pattern matches."""
    return router.parse_selector(pattern).repositories.text.partition("/")[0]


def _unreachable(access: Access) -> Iterator[str]:
    """Yield the rules behind one that decides everything."""
    final: dict[bool, int] = {}
    for number, rule in enumerate(access.rules, 1):
        if (before := final.get(rule.is_admin)) is not None:
            yield f"access.rules: rule {number}: never used; rule {before} decides everything"
        elif not rule.to and any(pattern in _EVERY_IMAGE for pattern in rule.images):
            final[rule.is_admin] = number


def _shared_names(access: Access) -> Iterator[str]:
    """Warn of issuers whose users can have the names of other users, and so their permissions."""
    others = (access.htpasswd_file, access.tokens_file, access.client_certificates)
    if len(access.oidc) + sum(other is not None for other in others) < 2:
        return
    for number, issuer in enumerate(access.oidc, 1):
        if issuer.user.startswith("{"):
            yield (
                f"access.oidc: issuer {number}: its users can have the names of other users; begin "
                f"`user` with a text, for example user: 'ci:{issuer.user}'"
            )


def _callers_without_user(settings: Settings) -> Iterator[str]:
    """Warn of registries with ``credentials: caller``, whose clients are not users of Millpond."""
    for name, upstream in settings.upstreams.items():
        if upstream.credentials == "caller" and not settings.access.anonymous:
            yield (
                f"upstreams.{name}: a client that logs in to the registry is anonymous here, and "
                "access.anonymous: false refuses it unless it also has a certificate, or sends a "
                "login of Millpond on the same request"
            )


def _is_any_like(pattern: str, names: dict[str, tuple[str, ...]]) -> bool:
    return any(map(NamePattern.of(pattern).matches, names))
