"""The read checks of the OCI distribution conformance suite, held here one by one.

Categories "Pull" and "Content Discovery" of https://github.com/opencontainers/distribution-spec
(`conformance/`, `spec.md`). Pushing is not ours: the content lies upstream.
"""

import base64
import json
from dataclasses import dataclass

import pytest
from multidict import CIMultiDict

from tests.fakes import content
from tests.fakes.content import Content, Document, Image, Index
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

REPO = "library/conformance"
ACCEPT = (content.OCI_INDEX, content.OCI_MANIFEST)  # the suite sends two lines
TAGS = ("latest", "v1", "v1.0", "V2_x", "a-b.c")
RANDOM = content.digest(b"nobody has this")


def custom(changes: Document, *, blobs: dict[str, bytes] | None = None) -> Image:
    """Return an image whose manifest says something else or something more."""
    plain = content.image("custom")
    document = json.loads(plain.manifest) | changes
    return Image(
        manifest=content.encode(document),
        media_type=document["mediaType"],
        blobs={**plain.blobs, **(blobs or {})},
    )


def described(data: bytes, media_type: str = content.OCI_LAYER) -> Document:
    return {"mediaType": media_type, "digest": content.digest(data), "size": len(data)}


INLINE = b'{"small": "enough to lie in the manifest"}'
MISSING = content.image("a subject that nobody pushed")
SUBJECT = content.image("subject")
SBOM = content.artifact(SUBJECT, "application/vnd.example.sbom.v1", annotations={"k": "v"})
SIGNATURE = content.artifact(SUBJECT, "application/vnd.example.signature.v1", payload=b"{}")
BY_CONFIG = custom(
    {"subject": described(SUBJECT.manifest, SUBJECT.media_type), "annotations": {"by": "config"}}
)
ABOUT_INDEX: Index = content.multi_platform("subject index")

KINDS: dict[str, Content] = {
    "image": content.image("image"),
    "docker image": content.image("docker", docker=True),
    "index": content.multi_platform("index"),
    "nested index": content.nested_index("nested"),
    "sha512": content.image("sha512", algorithm="sha512"),
    "sha512 index": content.index(
        content.image("sha512 child", algorithm="sha512"), algorithm="sha512"
    ),
    "zero-byte blob": custom({"layers": [described(b"")]}, blobs={content.digest(b""): b""}),
    "empty layer list": custom({"layers": []}),
    "empty index": content.index(),
    "nondistributable layers": content.foreign_image(["https://away.invalid/layer"]),
    "data field": custom(
        {
            "config": described(INLINE, content.OCI_CONFIG)
            | {"data": base64.b64encode(INLINE).decode()}
        },
        blobs={content.digest(INLINE): INLINE},
    ),
    "custom fields": custom({"org.example.custom": {"a": [1, None, "ü"]}, "another": 1.5e300}),
    "custom media types": custom(
        {"config": described(INLINE, "application/vnd.example.config")},
        blobs={content.digest(INLINE): INLINE},
    ),
    "artifact": content.artifact(),
    "artifact about an image": SBOM,
    "missing subject": content.artifact(MISSING),
    "unknown manifest": content.unknown(),
    "no mediaType": content.untyped(),
}


@dataclass
class Suite:
    """The suite's client: every request as the suite sends it."""

    proxy: Proxy
    name: str = REPO

    async def ask(self, method: str, path: str, *accept: str, **headers: str) -> Answer:
        sent = CIMultiDict([*headers.items(), *(("Accept", line) for line in accept)])
        url = f"/v2/{self.name}/{path}"
        async with self.proxy.client.request(method, url, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    async def manifest(self, method: str, ref: str) -> Answer:
        return await self.ask(method, f"manifests/{ref}", *ACCEPT)

    async def blob(self, method: str, digest: str) -> Answer:
        return await self.ask(method, f"blobs/{digest}")


@pytest.fixture
async def suite(start: Start, upstream: FakeUpstream) -> Suite:
    for tag in TAGS:
        upstream.add(REPO, KINDS["image"], tags=tag)
    return Suite(await start())


def each_kind() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", KINDS)


def assert_manifest(answer: Answer, method: str, held: Content) -> None:
    """The body, the length, the type and the digest: all exact."""
    assert answer.status == 200
    assert answer.body == (held.manifest if method == "GET" else b"")
    assert answer.headers["Content-Length"] == str(len(held.manifest))
    assert answer.headers["Content-Type"] == held.media_type
    assert answer.headers["Docker-Content-Digest"] == held.digest


async def test_ping(suite: Suite) -> None:
    answer = await suite.proxy.get("/v2/")
    assert answer.status == 200


@each_kind()
@pytest.mark.parametrize("first", ["GET", "HEAD"])
async def test_manifests_by_tag_and_digest(
    suite: Suite, upstream: FakeUpstream, kind: str, first: str
) -> None:
    """And every manifest below; whatever is asked first, and again from the cache."""
    held = upstream.add(REPO, KINDS[kind], tags="kind")
    second = {"GET": "HEAD", "HEAD": "GET"}[first]
    for method in (first, second, first):
        answer = await suite.manifest(method, "kind")
        if held.digest.startswith("sha256:"):
            assert_manifest(answer, method, held)
        for digest, each in held.manifests.items():
            assert_manifest(await suite.manifest(method, digest), method, each)


@each_kind()
async def test_manifests_by_digest_alone(suite: Suite, upstream: FakeUpstream, kind: str) -> None:
    held = upstream.add(REPO, KINDS[kind], tags=())
    for method in ("GET", "HEAD"):
        for digest, each in held.manifests.items():
            assert_manifest(await suite.manifest(method, digest), method, each)


@pytest.mark.parametrize("kind", ["sha512", "sha512 index"])
async def test_the_tag_of_a_sha512_manifest_is_told_by_a_digest_that_is_right(
    suite: Suite, upstream: FakeUpstream, kind: str
) -> None:
    held = upstream.add(REPO, KINDS[kind], tags="kind")
    answer = await suite.manifest("GET", "kind")
    algorithm = answer.headers["Docker-Content-Digest"].partition(":")[0]
    right = content.digest(held.manifest, algorithm)
    assert answer.headers["Docker-Content-Digest"] == right
    assert answer.body == held.manifest


@each_kind()
@pytest.mark.parametrize("first", ["GET", "HEAD"])
async def test_blobs(suite: Suite, upstream: FakeUpstream, kind: str, first: str) -> None:
    held = upstream.add(REPO, KINDS[kind], tags="kind")
    second = {"GET": "HEAD", "HEAD": "GET"}[first]
    for method in (first, second, first):
        for digest, data in held.blobs.items():
            answer = await suite.blob(method, digest)
            assert answer.status == 200
            assert answer.body == (data if method == "GET" else b"")
            assert answer.headers["Content-Length"] == str(len(data))
            assert answer.headers["Docker-Content-Digest"] == digest
        await suite.proxy.settled()


async def test_a_nondistributable_layer_is_not_looked_for_elsewhere(
    suite: Suite, upstream: FakeUpstream
) -> None:
    """Its `urls` are the client's business: here it is as unknown as it is upstream."""
    held = upstream.add(REPO, KINDS["nondistributable layers"], tags="kind")
    assert isinstance(held, Image)
    away = held.layers[0]
    assert away not in held.blobs
    assert (await suite.blob("GET", away)).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("ref", ["missing", RANDOM, content.digest(b"none", "sha512")])
async def test_a_missing_manifest(suite: Suite, method: str, ref: str) -> None:
    answer = await suite.manifest(method, ref)
    assert answer.status == 404
    assert method == "HEAD" or codes(answer) == ["MANIFEST_UNKNOWN"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_missing_blob(suite: Suite, method: str) -> None:
    answer = await suite.blob(method, RANDOM)
    assert answer.status == 404
    assert method == "HEAD" or codes(answer) == ["BLOB_UNKNOWN"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_missing_repository(suite: Suite, method: str) -> None:
    suite.name = "library/nothing"
    assert (await suite.manifest(method, "latest")).status == 404
    assert (await suite.blob(method, RANDOM)).status == 404


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_a_bad_digest(suite: Suite, kind: str) -> None:
    answer = await suite.ask("GET", f"{kind}/sha256:baddigeststring", *ACCEPT)
    assert answer.status in {400, 404}
    assert codes(answer) == ["DIGEST_INVALID"]


async def test_errors_have_the_form_that_the_specification_gives(suite: Suite) -> None:
    for path in ("manifests/missing", f"blobs/{RANDOM}", "manifests/sha256:bad", "tags/list?n=x"):
        answer = await suite.ask("GET", path)
        assert 400 <= answer.status < 500
        [error] = json.loads(answer.body)["errors"]
        assert {"code", "message"} <= set(error) <= {"code", "message", "detail"}


async def test_the_empty_tag_list(suite: Suite, upstream: FakeUpstream) -> None:
    suite.name = "library/untagged"
    upstream.add(suite.name, KINDS["image"], tags=())
    answer = await suite.ask("GET", "tags/list")
    assert answer.status == 200
    assert json.loads(answer.body) == {"name": suite.name, "tags": []}


async def test_the_tag_list_of_a_missing_repository(suite: Suite) -> None:
    suite.name = "library/nothing"
    answer = await suite.ask("GET", "tags/list")
    assert answer.status == 404
    assert codes(answer) == ["NAME_UNKNOWN"]


async def test_the_tag_list_has_every_tag(suite: Suite) -> None:
    answer = await suite.ask("GET", "tags/list")
    assert answer.status == 200
    assert json.loads(answer.body) == {"name": REPO, "tags": sorted(TAGS)}
    assert answer.headers["Content-Type"] == "application/json"
    assert "Link" not in answer.headers


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 1000])
async def test_n_tags(suite: Suite, n: int) -> None:
    answer = await suite.ask("GET", f"tags/list?n={n}")
    assert json.loads(answer.body)["tags"] == sorted(TAGS)[:n]
    assert ("Link" in answer.headers) == (n < len(TAGS))


async def test_no_tags(suite: Suite) -> None:
    answer = await suite.ask("GET", "tags/list?n=0")
    assert json.loads(answer.body)["tags"] == []
    assert "Link" not in answer.headers


@pytest.mark.parametrize("n", ["", "&n=2"])
@pytest.mark.parametrize("last", [*TAGS, "b", "~"])
async def test_tags_behind_the_last(suite: Suite, last: str, n: str) -> None:
    """`last` is left out itself; it need not exist."""
    answer = await suite.ask("GET", f"tags/list?last={last}{n}")
    behind = [tag for tag in sorted(TAGS) if tag > last]
    assert json.loads(answer.body)["tags"] == (behind[:2] if n else behind)


@pytest.mark.parametrize("page_size", [None, 2])
async def test_links_lead_through_every_tag_once(
    suite: Suite, upstream: FakeUpstream, page_size: int | None
) -> None:
    upstream.behaviour.page_size = page_size
    path, seen = "tags/list?n=2", []
    while path:
        answer = await suite.ask("GET", path)
        seen += json.loads(answer.body)["tags"]
        link = answer.headers.get("Link", "")
        assert not link or link.endswith('>; rel="next"')
        path = link.partition(">")[0].removeprefix(f"</v2/{REPO}/")
    assert seen == sorted(TAGS)


def referrers(answer: Answer) -> dict[str, Document]:
    """Return the descriptors of a referrers answer by digest, its form checked."""
    assert answer.status == 200
    assert answer.headers["Content-Type"] == content.OCI_INDEX
    document = json.loads(answer.body)
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == content.OCI_INDEX
    return {entry["digest"]: entry for entry in document["manifests"]}


@pytest.mark.parametrize("api", [True, False], ids=["api upstream", "no api upstream"])
async def test_no_referrers(suite: Suite, upstream: FakeUpstream, *, api: bool) -> None:
    upstream.behaviour.referrers = api
    for subject in (RANDOM, content.digest(b"", "sha512"), KINDS["image"].digest):
        assert referrers(await suite.ask("GET", f"referrers/{subject}")) == {}


async def test_referrers_of_a_bad_digest(suite: Suite) -> None:
    answer = await suite.ask("GET", "referrers/sha256:baddigeststring")
    assert answer.status == 400
    assert codes(answer) == ["DIGEST_INVALID"]


@pytest.mark.parametrize("subject_is_there", [True, False])
async def test_referrers(suite: Suite, upstream: FakeUpstream, *, subject_is_there: bool) -> None:
    """Each by digest, media type, size, artifact type (else the config's) and annotations."""
    if subject_is_there:
        upstream.add(REPO, SUBJECT, tags=())
    kinds = (
        (SBOM, "application/vnd.example.sbom.v1"),
        (SIGNATURE, "application/vnd.example.signature.v1"),
        (BY_CONFIG, content.OCI_CONFIG),
    )
    for each, _ in kinds:
        upstream.add(REPO, each, tags=())
    found = referrers(await suite.ask("GET", f"referrers/{SUBJECT.digest}"))
    for each, artifact_type in kinds:
        document = json.loads(each.manifest)
        assert found.pop(each.digest) == {
            "digest": each.digest,
            "mediaType": each.media_type,
            "size": len(each.manifest),
            "artifactType": artifact_type,
            **({"annotations": document["annotations"]} if "annotations" in document else {}),
        }
    assert not found


@pytest.mark.parametrize("api", [True, False], ids=["api upstream", "no api upstream"])
async def test_referrers_of_one_type(suite: Suite, upstream: FakeUpstream, *, api: bool) -> None:
    for each in (SBOM, SIGNATURE, BY_CONFIG):
        upstream.add(REPO, each, tags=())
    if not api:
        upstream.behaviour.referrers = False
        entries = [
            each.descriptor | {"artifactType": kind}
            for each, kind in (
                (SBOM, "application/vnd.example.sbom.v1"),
                (SIGNATURE, "application/vnd.example.signature.v1"),
            )
        ]
        document = {"schemaVersion": 2, "mediaType": content.OCI_INDEX, "manifests": entries}
        upstream.add_manifest(
            REPO, content.encode(document), content.OCI_INDEX, [SUBJECT.digest.replace(":", "-")]
        )
    wanted = "application/vnd.example.sbom.v1"
    answer = await suite.ask("GET", f"referrers/{SUBJECT.digest}?artifactType={wanted}")
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    assert list(referrers(answer)) == [SBOM.digest]
    none = await suite.ask("GET", f"referrers/{SUBJECT.digest}?artifactType=application/none")
    assert none.headers["OCI-Filters-Applied"] == "artifactType"
    assert referrers(none) == {}


async def test_referrers_of_an_index_and_of_a_sha512_manifest(
    suite: Suite, upstream: FakeUpstream
) -> None:
    for subject in (ABOUT_INDEX, KINDS["sha512"]):
        about = upstream.add(REPO, content.artifact(subject), tags=())
        assert list(referrers(await suite.ask("GET", f"referrers/{subject.digest}"))) == [
            about.digest
        ]


RANGED = content.blob(2048, "ranged")


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047)],
)
async def test_ranges(
    suite: Suite, upstream: FakeUpstream, asked: str, first: int, last: int, *, warm: bool
) -> None:
    digest = upstream.add_blob(REPO, RANGED)
    if warm:
        await suite.blob("GET", digest)
        await suite.proxy.settled()
    answer = await suite.ask("GET", f"blobs/{digest}", Range=f"bytes={asked}")
    assert answer.status == 206
    assert answer.body == RANGED[first : last + 1]
    assert answer.headers["Content-Length"] == str(last + 1 - first)
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/2048"


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("asked", ["500-0", "5000-10000"])
async def test_ranges_that_cannot_be(
    suite: Suite, upstream: FakeUpstream, asked: str, *, warm: bool
) -> None:
    digest = upstream.add_blob(REPO, RANGED)
    if warm:
        await suite.blob("GET", digest)
        await suite.proxy.settled()
    answer = await suite.ask("GET", f"blobs/{digest}", Range=f"bytes={asked}")
    assert answer.status == 416


async def test_pushing_is_refused_and_says_what_is_allowed(suite: Suite) -> None:
    for method, path in (
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/latest"),
        ("DELETE", "manifests/latest"),
        ("DELETE", f"blobs/{RANDOM}"),
    ):
        answer = await suite.ask(method, path)
        assert answer.status == 405
        assert codes(answer) == ["UNSUPPORTED"]


def codes(answer: Answer) -> list[str]:
    return [error["code"] for error in json.loads(answer.body)["errors"]]
