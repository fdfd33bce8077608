"""The parsers of webhooks of each format, and their errors."""

import json
from typing import Any

import pytest

from proxy.core.errors import Unprocessable
from proxy.core.names import Repo, Tag
from proxy.services.hooks.delivery import Delivery, Mention
from proxy.services.hooks.formats import FORMATS, read
from tests.services.hooks import payloads
from tests.services.hooks.payloads import DIGEST, SENDERS, Sender

REPO, TAG = Repo("acme/app"), Tag("1.2")


def parsed(form: str, document: object, **headers: str) -> Delivery:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read(form, named, json.dumps(document).encode())


def tags(delivery: Delivery) -> list[tuple[str, str]]:
    return [(one.repo, one.tag) for one in delivery.mentions]


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
def test_the_documented_shape_names_its_tag(sender: Sender) -> None:
    sent = sender.send(REPO, TAG)
    assert tags(read(sender.format, sent.headers, sent.body)) == [(REPO, TAG)]


def test_every_format_has_a_sender() -> None:
    assert {sender.format for sender in SENDERS.values()} == set(FORMATS)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"nonsense", b'{"events": 1}', b"\xff", b"[" * 5000]
)
def test_another_shape_is_refused_and_the_expected_one_named(form: str, raw: bytes) -> None:
    with pytest.raises(Unprocessable) as refused:
        read(form, {}, raw)
    assert FORMATS[form].expected in refused.value.message


@pytest.mark.parametrize(("sender"), SENDERS.values(), ids=SENDERS)
@pytest.mark.parametrize(("repo", "tag"), [("UP PER", "1"), ("../etc", "1"), ("acme/app", "a b")])
def test_names_that_break_the_grammar_are_refused(sender: Sender, repo: str, tag: str) -> None:
    sent = sender.send(repo, tag)
    with pytest.raises(Unprocessable):
        read(sender.format, sent.headers, sent.body)


@pytest.mark.parametrize("event", ["package", "registry_package"])
def test_both_events_of_github(event: str) -> None:
    document = payloads.github("Acme/App", "1.2", event)
    found = parsed("github", document, X_GitHub_Event=event, X_GitHub_Delivery="72d3162e")
    assert tags(found) == [("acme/app", "1.2")], "registries have names in lower case only"
    assert found.ids[0] == "72d3162e"
    assert len(found.ids) == 2


def test_github_packages_of_other_kinds_and_images_without_a_tag_name_nothing() -> None:
    untagged = payloads.github("acme/app", "")
    untagged["registry_package"]["package_version"]["package_url"] = "ghcr.io/acme/app:"
    npm, deleted = payloads.github("acme/app", "1"), payloads.github("acme/app", "1")
    npm["registry_package"] |= {"package_type": "npm", "ecosystem": "npm"}
    deleted["action"] = "deleted"
    for document in (untagged, npm, deleted):
        assert not parsed("github", document, X_GitHub_Event="registry_package").mentions


def test_github_ping() -> None:
    assert parsed("github", {"zen": "Keep it logically awesome."}, X_GitHub_Event="ping").is_ping


def test_other_events_of_github_are_refused() -> None:
    with pytest.raises(Unprocessable, match="registry_package"):
        parsed("github", {"ref": "refs/heads/main"}, X_GitHub_Event="push")


def test_quay_names_all_updated_tags_and_in_old_versions_by_a_mapping() -> None:
    document = payloads.quay("acme/app", "1")
    document["updated_tags"] = {"1": "b750fe79", "latest": "b750fe79"}
    assert tags(parsed("quay", document)) == [("acme/app", "1"), ("acme/app", "latest")]


def test_harbor_events_about_something_else_and_pushes_by_digest_name_nothing() -> None:
    pulled, by_digest = payloads.harbor("acme/app", "1"), payloads.harbor("acme/app", DIGEST)
    pulled["type"] = "PULL_ARTIFACT"
    assert not parsed("harbor", pulled).mentions
    assert not parsed("harbor", by_digest).mentions


def test_a_cloud_event_of_harbor_has_an_id() -> None:
    found = parsed("harbor", payloads.harbor_cloud_event("acme/app", "1"))
    assert found.ids == ("66e18103-09c1-41f6-982f-37df223f3eeb",)


@pytest.mark.parametrize(
    ("action", "count"), [("push", 1), ("delete", 1), ("pull", 0), ("mount", 0)]
)
def test_events_of_distribution(action: str, count: int) -> None:
    found = parsed("distribution", payloads.distribution("acme/app", "1", action, "e1"))
    assert found.mentions == (Mention(Repo("acme/app"), Tag("1"), "e1"),) * count


def test_blobs_pushed_to_distribution_name_nothing() -> None:
    document = payloads.distribution("acme/app", "1")
    del document["events"][0]["target"]["tag"]
    assert not parsed("distribution", document).mentions


@pytest.mark.parametrize(
    ("change", "expected"), [({"status": "running"}, []), ({"ref": "main"}, [("acme/app", "main")])]
)
def test_a_pipeline_of_gitlab_counts_when_it_has_succeeded(
    change: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    document = payloads.gitlab_pipeline("acme/app", "1")
    document["object_attributes"] |= change
    assert tags(parsed("gitlab", document)) == expected


def test_gitlab_says_which_delivery_it_is() -> None:
    document = payloads.gitlab_pipeline("acme/app", "1")
    assert parsed("gitlab", document, Idempotency_Key="f5e5f430").ids == ("f5e5f430",)
