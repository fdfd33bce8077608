"""Resolves repository, ``Host`` and ``ns`` of a request to a configured upstream and a repository.

``ns`` (distribution-spec "Registry Proxying") takes precedence over the ``Host`` header, then the
first path component, then the default upstream. Millpond never connects to an address that a client
chose: an upstream that is not configured is refused.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from yarl import URL

from proxy.core.errors import NameUnknown
from proxy.core.names import Image, Repo, Target, parse_digest, parse_repo, parse_tag
from proxy.core.selection import ANY, Selector, is_pattern, make_selector, split_tag

MAX_NS_LENGTH = 255


class _Upstream(Protocol):
    """The settings of one upstream that routing needs.

    The host and port of ``url``, and ``aliases``, are further names in paths and in ``ns``;
    ``hostnames`` are ``Host`` headers; with ``library_prefix``, ``name`` means ``library/name``.
    """

    @property
    def url(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def hostnames(self) -> Sequence[str]: ...
    @property
    def library_prefix(self) -> bool: ...


class _Routes(Protocol):
    """The upstreams by name, and the one for names without an upstream."""

    @property
    def upstreams(self) -> Mapping[str, _Upstream]: ...
    @property
    def default_upstream(self) -> str: ...


class By(StrEnum):
    """The way in which the upstream of a request or of an image's name is chosen."""

    NS = "ns"
    """The parameter ``ns``."""
    HOST = "host"
    """The host name under which clients reach Millpond."""
    NAME = "name"
    """The first component of the name."""
    DEFAULT = "default"
    """Nothing in the name: ``default_upstream``."""


class Choice(NamedTuple):
    """The target of a request, how its upstream was chosen, and the decisive text, if any."""

    target: Target
    by: By
    text: str = ""


class _Known(NamedTuple):
    name: str
    library_prefix: bool


class Router:
    """Resolves names with one table, built from the settings.

    ``revision`` increases with each change of the settings.
    """

    def __init__(self, settings: _Routes) -> None:
        self.revision = 0
        self.update(settings)

    def update(self, settings: _Routes) -> None:
        """Replace the settings."""
        table: dict[str, _Known] = {}
        hostnames: dict[str, _Known] = {}
        for name, upstream in settings.upstreams.items():
            known = _Known(name, upstream.library_prefix)
            for alias in (name, *upstream.aliases):
                table[alias] = known
            for host in (name, *upstream.aliases, *upstream.hostnames):
                hostnames[host] = known
        for name, upstream in settings.upstreams.items():
            table.setdefault(_authority(URL(upstream.url)), table[name])
        self._table, self._hostnames = table, hostnames
        self._default = table[settings.default_upstream]
        self.revision += 1

    def resolve(self, repo: Repo, host: str, ns: str | None) -> Target:
        """Return the upstream and the repository of a request.

        Raises ``NameUnknown`` if ``ns`` or the path names an upstream that is not configured,
        ``NameInvalid`` if the path ends after the upstream's name.
        """
        return self.choose(repo, host, ns).target

    def choose(self, repo: Repo, host: str, ns: str | None) -> Choice:
        """Return the target of a request, and how it was chosen. Raises as ``resolve``."""
        if ns is not None:
            return Choice(self._within(self._named(ns), repo), By.NS, ns)
        host = host.lower()
        served = self._hostnames.get(host) or self._hostnames.get(_without_port(host))
        if served is not None:
            return Choice(self._within(served, repo), By.HOST, host)
        first, slash, rest = repo.partition("/")
        if slash and first in self._table:
            return Choice(_target(self._table[first], parse_repo(rest)), By.NAME, first)
        if slash and _is_host(first):
            raise _unconfigured(first)
        return Choice(_target(self._default, repo), By.DEFAULT)

    def parse_image(self, text: str) -> Image:
        """Return the image of a reference in Docker's grammar.

        A leading address with a port that is not configured is assumed to be Millpond's own.
        Raises ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``, or ``NameUnknown``.
        """
        return self.choose_image(text)[0]

    def choose_image(
        self, text: str, host: str = "", ns: str | None = None
    ) -> tuple[Image, Choice | None]:
        """Return the image of a reference, and how its upstream was chosen; None for a digest.

        With ``host`` or ``ns``, its name is the one in the path of such a request. Raises as
        ``parse_image``.
        """
        text = _without_scheme(text)
        if text.startswith(("sha256:", "sha512:")):
            return Image(None, None, parse_digest(text)), None
        name, at, digest = text.partition("@")
        path, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        name, is_path = path + slash + last, bool(host) or ns is not None
        choice = self.choose(parse_repo(name), host, ns) if is_path else self._choose_by_name(name)
        if at:
            return Image(choice.target, None, parse_digest(digest)), choice
        return Image(choice.target, parse_tag(tag if colon else "latest"), None), choice

    def parse_selector(self, text: str) -> Selector:
        """Return the selector of a reference as for ``parse_image``, or of a pattern.

        Without a tag or digest it selects all tags. A pattern that begins with a wildcard may match
        from anywhere in a name. The upstream need not be configured: the cache may have content of
        a removed one. Raises ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``.
        """
        text = _without_scheme(text)
        if text.startswith(("sha256:", "sha512:")):
            return make_selector(ANY, digest=parse_digest(text))
        name, at, digest = text.partition("@")
        repositories, tags = split_tag(name)
        if is_pattern(repositories):
            repositories = self._complete_pattern(repositories)
        else:
            repositories = str(self._resolve_cached(repositories))
        if at:
            return make_selector(repositories, digest=parse_digest(digest))
        if tags is not None and not is_pattern(tags):
            tags = parse_tag(tags)
        return make_selector(repositories, tags)

    def parse_pin(self, text: str) -> Image | Selector:
        """Return the image that ``text`` pins, or the selector if it is a pattern.

        Raises ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``, ``NameUnknown``.
        """
        return self.parse_selector(text) if is_pattern(text) else self.parse_image(text)

    def _resolve_cached(self, name: str) -> Target:
        """Return the target of a name, also if its upstream has been removed."""
        try:
            return self._choose_by_name(name).target
        except NameUnknown:
            first, _, rest = name.partition("/")
            return Target(first.lower(), parse_repo(rest))

    def _complete_pattern(self, pattern: str) -> str:
        """Return a pattern for whole names: ``docker.io/library/nginx*`` for ``nginx*``."""
        first, slash, rest = pattern.partition("/")
        if is_pattern(first[:1]):
            return f"{ANY}/{pattern}"
        host = first.lower() if slash else ""
        known = self._table.get(host) or self._hostnames.get(host)
        if known is None and slash and (_is_host(first) or ":" in first):
            return pattern
        if known is None:
            known, rest = self._default, pattern
        if known.library_prefix and "/" not in rest and rest != ANY:
            rest = f"library/{rest}"
        return f"{known.name}/{rest}"

    def _choose_by_name(self, name: str) -> Choice:
        """Return the target of a name as clients write it, without a tag, and what chose it."""
        first, slash, rest = name.partition("/")
        host = first.lower()
        if not slash or not (_is_host(first) or ":" in first):
            return self.choose(parse_repo(name), "", None)
        if (known := self._table.get(host)) is not None:
            return Choice(self._within(known, parse_repo(rest)), By.NAME, host)
        if (known := self._hostnames.get(host)) is not None:
            return Choice(self._within(known, parse_repo(rest)), By.HOST, host)
        if ":" in first or host == "localhost":
            return self.choose(parse_repo(rest), "", None)
        raise _unconfigured(first)

    def _named(self, ns: str) -> _Known:
        name = ns.lower()
        known = self._table.get(name) or self._table.get(name.removesuffix(":443"))
        if known is None:
            raise _unconfigured(ns[:MAX_NS_LENGTH])
        return known

    def _within(self, known: _Known, repo: Repo) -> Target:
        """Remove a leading name of the same upstream, which mirrors with a path prefix send."""
        first, slash, rest = repo.partition("/")
        if slash and self._table.get(first) == known:
            repo = parse_repo(rest)
        return _target(known, repo)


def _without_scheme(text: str) -> str:
    return text.removeprefix("docker-pullable://").removeprefix("docker://")


def _target(known: _Known, repo: Repo) -> Target:
    if known.library_prefix and "/" not in repo:
        repo = Repo(f"library/{repo}")
    return Target(known.name, repo)


def _authority(url: URL) -> str:
    host = url.host or ""
    return host if url.is_default_port() else f"{host}:{url.port}"


def _without_port(host: str) -> str:
    return host.rpartition(":")[0] if ":" in host else host


def _is_host(component: str) -> bool:
    """Return True for a host, False for a namespace, as in Docker's reference grammar."""
    return "." in component or component == "localhost"


def _unconfigured(name: str) -> NameUnknown:
    return NameUnknown(
        f"{name!r} is not a configured upstream; to mirror it, add it to the configuration under "
        f"upstreams, for example: upstreams: {{{name}: {{url: https://{name}}}}}"
    )
