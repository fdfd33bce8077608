"""Manifests of schema 1: old, and still to be told honestly."""

import base64
import json

from tests.fakes import content
from tests.fakes.faults import body, digest_header, status
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy

SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
PAYLOAD = content.schema1("library/old", "latest", 1).manifest
DIGEST = content.digest(PAYLOAD)


def signed(payload: bytes) -> bytes:
    """Sign as distribution's libtrust formats it: the signatures go in before the last brace."""
    tail = payload[payload.rindex(b"\n}") :]
    protected = {
        "formatLength": len(payload) - len(tail),
        "formatTail": base64.urlsafe_b64encode(tail).decode().rstrip("="),
    }
    encoded = base64.urlsafe_b64encode(json.dumps(protected).encode()).decode().rstrip("=")
    signatures = json.dumps([{"protected": encoded, "signature": "c2ln", "header": {}}]).encode()
    return payload[: -len(tail)] + b',\n   "signatures": ' + signatures + tail


async def test_t19_a_signed_manifest_is_verified_and_passed_on(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    document = signed(PAYLOAD)
    json.loads(document)
    upstream.fault(status(200), body(document, SIGNED), digest_header(DIGEST), kind="manifest")
    for ref in ("latest", DIGEST):
        answer = await proxy.get(f"/v2/library/old/manifests/{ref}")
        assert (answer.status, answer.body) == (200, document)
        assert answer.headers["Content-Type"] == SIGNED
        assert answer.headers["Docker-Content-Digest"] == DIGEST
    assert not proxy.held(), "its bytes are not its digest, so it has no place in the store"
    assert proxy.stats["cache"]["content_mismatches"] == 0


async def test_t19_a_signed_manifest_with_another_payload_is_refused(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    document = signed(PAYLOAD.replace(b"latest", b"forged"))
    upstream.fault(status(200), body(document, SIGNED), digest_header(DIGEST), kind="manifest")
    assert (await proxy.get("/v2/library/old/manifests/latest")).status == 502


async def test_t19_an_unsigned_manifest_is_cached(proxy: Proxy, upstream: FakeUpstream) -> None:
    old = upstream.add("library/old", content.schema1("library/old", "latest", 1))
    for ref in ("latest", old.digest):
        answer = await proxy.get(f"/v2/library/old/manifests/{ref}")
        assert (answer.status, answer.body) == (200, old.manifest)
        assert answer.headers["Content-Type"] == old.media_type
    assert proxy.held() == {old.digest}
