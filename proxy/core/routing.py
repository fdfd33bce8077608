"""Where a name leads: (repository, ``Host``, ``ns``) to a configured upstream and its repository.

``ns`` (distribution-spec "Registry Proxying") beats the ``Host`` header, which beats a first path
component, which beats the default upstream. Only configured upstreams exist: an address that a
client chose is refused, never dialled.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from yarl import URL

from proxy.core.errors import NameUnknown
from proxy.core.names import Image, Repo, Target, parse_digest, parse_repo, parse_tag
from proxy.core.selection import ANY, Selector, is_pattern, selector, split_tag

MAX_NS_LENGTH = 255


class NamedUpstream(Protocol):
    """The settings of one upstream that decide which names lead to it."""

    @property
    def url(self) -> str:
        """Its address; the authority is one of its names."""

    @property
    def aliases(self) -> Sequence[str]:
        """Other names for it, in paths and in ``ns``."""

    @property
    def hostnames(self) -> Sequence[str]:
        """``Host`` headers of requests that mean it."""

    @property
    def library_prefix(self) -> bool:
        """True if ``name`` means ``library/name``."""


class Routes(Protocol):
    """The settings that routing needs."""

    @property
    def upstreams(self) -> Mapping[str, NamedUpstream]:
        """Every upstream by its name."""

    @property
    def default_upstream(self) -> str:
        """The upstream for names that name none."""


class _Known(NamedTuple):
    name: str
    library_prefix: bool


class Router:
    """Resolves names by one look-up table, built from the settings.

    ``revision`` grows with each change of the settings.
    """

    def __init__(self, settings: Routes) -> None:
        self.revision = 0
        self.use(settings)

    def use(self, settings: Routes) -> None:
        """Resolve names by these settings from now on."""
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
        """Return the upstream and repository that a request means.

        Raises ``NameUnknown`` when ``ns`` or the path names an upstream that is not configured,
        ``NameInvalid`` when nothing is left of the path behind the upstream's name.
        """
        if ns is not None:
            return self._within(self._named(ns), repo)
        host = host.lower()
        served = self._hostnames.get(host) or self._hostnames.get(_without_port(host))
        if served is not None:
            return self._within(served, repo)
        first, slash, rest = repo.partition("/")
        if slash and first in self._table:
            return _target(self._table[first], parse_repo(rest))
        if slash and _is_host(first):
            raise _unconfigured(first)
        return _target(self._default, repo)

    def image(self, text: str) -> Image:
        """Return the image that people mean by ``text``, as Docker's reference grammar has it.

        A leading address with a port, or an unnamed host's, is taken for Millpond's own. Raises
        ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``, or ``NameUnknown``.
        """
        text = text.removeprefix("docker-pullable://").removeprefix("docker://")
        if text.startswith(("sha256:", "sha512:")):
            return Image(None, None, parse_digest(text))
        name, at, digest = text.partition("@")
        path, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        target = self._pulled(path + slash + last)
        if at:
            return Image(target, None, parse_digest(digest))
        return Image(target, parse_tag(tag if colon else "latest"), None)

    def selector(self, text: str) -> Selector:
        """Return which images people mean by ``text``: by names as ``image`` has them, or patterns.

        Without a tag or digest all tags are meant. A pattern that begins with a wildcard may begin
        anywhere in a name. An upstream need not be configured: what came from one that was removed
        is still held. Raises ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``.
        """
        text = text.removeprefix("docker-pullable://").removeprefix("docker://")
        if text.startswith(("sha256:", "sha512:")):
            return selector(ANY, digest=parse_digest(text))
        name, at, digest = text.partition("@")
        repositories, tags = split_tag(name)
        if is_pattern(repositories):
            repositories = self._completed(repositories)
        else:
            repositories = str(self._held_under(repositories))
        if at:
            return selector(repositories, digest=parse_digest(digest))
        if tags is not None and not is_pattern(tags):
            tags = parse_tag(tags)
        return selector(repositories, tags)

    def pin(self, text: str) -> Image | Selector:
        """Return what is pinned by ``text``: one image, or whatever a pattern matches.

        Raises ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``, ``NameUnknown``.
        """
        return self.selector(text) if is_pattern(text) else self.image(text)

    def _held_under(self, name: str) -> Target:
        """Return where a name leads, or led before its upstream was removed."""
        try:
            return self._pulled(name)
        except NameUnknown:
            first, _, rest = name.partition("/")
            return Target(first.lower(), parse_repo(rest))

    def _completed(self, pattern: str) -> str:
        """Return a pattern over whole names, as ``docker.io/library/nginx*`` for ``nginx*``."""
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

    def _pulled(self, name: str) -> Target:
        """Return where a name leads that a client would write in front of a tag."""
        first, slash, rest = name.partition("/")
        host = first.lower()
        if not slash or not (_is_host(first) or ":" in first):
            return self.resolve(parse_repo(name), "", None)
        known = self._table.get(host) or self._hostnames.get(host)
        if known is not None:
            return self._within(known, parse_repo(rest))
        if ":" in first or host == "localhost":
            return self.resolve(parse_repo(rest), "", None)
        raise _unconfigured(first)

    def _named(self, ns: str) -> _Known:
        name = ns.lower()
        known = self._table.get(name) or self._table.get(name.removesuffix(":443"))
        if known is None:
            raise _unconfigured(ns[:MAX_NS_LENGTH])
        return known

    def _within(self, known: _Known, repo: Repo) -> Target:
        """Take off a leading name of the same upstream, as mirrors with a path prefix send it."""
        first, slash, rest = repo.partition("/")
        if slash and self._table.get(first) == known:
            repo = parse_repo(rest)
        return _target(known, repo)


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
    """Tell a host from a namespace as Docker's reference grammar does."""
    return "." in component or component == "localhost"


def _unconfigured(name: str) -> NameUnknown:
    return NameUnknown(
        f"{name!r} is not a configured upstream; to mirror it, add it to the configuration under "
        f"upstreams, for example: upstreams: {{{name}: {{url: https://{name}}}}}"
    )
