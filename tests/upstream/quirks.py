"""What known registries do differently, as data: how the fake is made, and what must come of it.

Sources: the registries' own documentation and code, and what their users report.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fakes.faults import Effect, digest_header, status
from tests.fakes.records import Record
from tests.fakes.registry import RateLimit
from tests.fakes.replies import Reply
from tests.fakes.upstream import FakeUpstream, Match

USER = {"username": "alice", "password": "wonderland"}
AWS = {"username": "AWS", "password": "twelve-hours"}


@dataclass(frozen=True, kw_only=True)
class Quirk:
    """One kind of registry.

    `made` are arguments of `FakeUpstream`; `auth` and `behaviour` are set on it, `{url}` in a text
    standing for its address; `faults` spoil its answers. `settings` are those of the upstream that
    every proxy needs here; `reader` is who may read what is private.

    What must come of it: `unknown` and `private` are the statuses for a client that asks for what
    does not exist or for what we may not read, `bad_credentials` that when ours are wrong.
    """

    name: str
    made: Mapping[str, Any] = field(default_factory=dict)
    auth: Mapping[str, Any] = field(default_factory=dict)
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[tuple[Effect, Match], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reader: Mapping[str, str] = field(default_factory=lambda: USER)
    unknown: int = 404
    private: int = 403
    bad_credentials: int = 502

    def make(self) -> FakeUpstream:
        """A registry of this kind, not yet listening."""
        return FakeUpstream(**self.made)

    def apply(self, upstream: FakeUpstream) -> None:
        """Let a listening registry behave so."""
        for name, value in self.auth.items():
            text = isinstance(value, str)
            setattr(upstream.auth, name, value.format(url=upstream.url) if text else value)
        upstream.auth.users = {self.reader["username"]: self.reader["password"]}
        for name, value in self.behaviour.items():
            mutable = isinstance(value, set | RateLimit)
            setattr(upstream.behaviour, name, _copy(value) if mutable else value)
        for effect, match in self.faults:
            upstream.fault(effect, **match)


def _copy(value: Any) -> Any:
    return set(value) if isinstance(value, set) else replace(value)


def _plain_refusal(_record: Record, reply: Reply) -> Reply:
    """A 401 whose body is a sentence, as ECR's."""
    if reply.status != 401:
        return reply
    return replace(reply, body=b"Not Authorized\n").with_header("Content-Type", "text/plain")


def _null_tags(_record: Record, reply: Reply) -> Reply:
    """A list of tags with nulls among them."""
    document = json.loads(reply.body)
    if "tags" not in document:
        return reply
    document["tags"] = [entry for tag in document["tags"] for entry in (tag, None)]
    return replace(reply, body=json.dumps(document).encode())


QUIRKS = [
    Quirk(
        name="docker-hub",  # unknown and private ones: a token, then 401 insufficient_scope
        auth={"scheme": "bearer", "dialect": "hub"},
        behaviour={"redirects": {"blob"}, "rate_limit": RateLimit(limit=100, remaining=100)},
        unknown=403,
    ),
    Quirk(
        name="docker-hub-paid",  # the same, without rate limit headers
        auth={"scheme": "bearer", "dialect": "hub", "anonymous": False},
        behaviour={"redirects": {"blob"}},
        settings=USER,
        unknown=403,
    ),
    Quirk(
        name="ghcr",  # a narrow Accept finds nothing; a bad Authorization is 403, no challenge
        auth={"scheme": "bearer", "dialect": "ghcr"},
        behaviour={"redirects": {"blob"}, "strict_accept": True, "referrers": False},
        unknown=403,
        bad_credentials=403,
    ),
    Quirk(
        name="quay",  # only `token`, without expires_in; absolute links
        auth={"scheme": "bearer", "dialect": "hub", "fields": ("token",), "expires_in": None},
        behaviour={"redirects": {"blob"}, "absolute_links": True, "page_size": 2},
        unknown=403,
    ),
    Quirk(
        name="gcr",  # the challenge stands on /v2/ only
        auth={"scheme": "bearer", "challenge": "ping"},
        behaviour={"redirects": {"blob"}, "referrers": False},
    ),
    Quirk(
        name="artifact-registry",  # redirects to a path on the registry itself
        auth={"scheme": "bearer"},
        behaviour={"redirects": {"blob"}, "relative_location": True},
    ),
    Quirk(
        name="registry.k8s.io",  # manifests, too, lie on another host
        made={"cdn_host": "127.0.0.2"},
        behaviour={"redirects": {"manifest", "blob"}, "referrers": False},
    ),
    Quirk(
        name="nvcr",  # no service; after expiry another realm, which helps nobody
        auth={"scheme": "bearer", "dialect": "nvcr", "expires_in": 600},
        behaviour={"redirects": {"blob"}},
    ),
    Quirk(
        name="ecr",  # Basic by a fixed user, refusals in plain text, blobs in S3
        auth={"scheme": "basic", "anonymous": False},
        behaviour={"redirects": {"blob"}, "page_size": 2},
        faults=((_plain_refusal, {"challenges": True}),),
        settings=AWS,
        reader=AWS,
    ),
    Quirk(
        name="acr",  # only `access_token`, without expires_in; relative links
        auth={"scheme": "bearer", "fields": ("access_token",), "expires_in": None},
        behaviour={"redirects": {"blob"}, "page_size": 2},
    ),
    Quirk(
        name="gitlab",  # the realm is another host and says 403
        made={"token_host": "127.0.0.2"},
        auth={"scheme": "bearer", "dialect": "gitlab", "service": "container_registry"},
        settings={"auth_hosts": ["127.0.0.2"]},
        unknown=403,
        bad_credentials=403,
    ),
    Quirk(
        name="jfrog",  # the registry and its realm lie below a path; nulls among the tags
        made={"base_path": "/artifactory/api/docker/repo"},
        auth={"scheme": "bearer", "realm": "{url}/v2/token", "anonymous": False},
        faults=((_null_tags, {"kind": "tags"}),),
        settings=USER,
    ),
    Quirk(
        name="registry2-htpasswd",
        auth={"scheme": "basic", "anonymous": False},
        settings=USER,
    ),
    Quirk(name="registry2-token", auth={"scheme": "bearer"}),
    Quirk(name="registry2-none"),
    Quirk(
        name="no-digest-header",
        faults=((digest_header(None), {}),),
    ),
    Quirk(
        name="no-head",
        faults=((status(405), {"method": "HEAD"}),),
    ),
]
