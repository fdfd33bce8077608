"""Rules: objections of a policy, by facts alone."""

from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ConfigError
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.core.selection import make_selector
from proxy.policies.rules import ATTACHMENT_TAG, ImageFacts, Rule, compile_rules, objection
from proxy.settings.policies import Policy

ONE, TWO, THREE = (sha256(name.encode()) for name in ("one", "two", "three"))


def rule(**settings: Any) -> Rule:
    [made] = compile_rules([Policy.model_validate(settings)], make_selector)
    return made


def facts(**known: Any) -> ImageFacts:
    return ImageFacts(**({"listed": frozenset({ONE})} | known))


def test_a_rule_covers_its_images_without_the_excepted() -> None:
    found = rule(
        images=["docker.io/acme/**", "ghcr.io/*/app"],
        deny=True,
        **{"except": ["docker.io/acme/free/*"]},
    )
    for upstream, repo, is_covered in (
        ("docker.io", "acme/app", True),
        ("docker.io", "acme/a/b/c", True),
        ("docker.io", "acme/free/app", False),
        ("docker.io", "acme/free/a/b", True),
        ("docker.io", "other/app", False),
        ("ghcr.io", "org/app", True),
        ("ghcr.io", "org/sub/app", False),
    ):
        assert found.covers(Target(upstream, Repo(repo))) is is_covered, repo


@pytest.mark.parametrize(
    ("allowed", "platform", "is_allowed"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/amd64", "linux/arm64", False),
        ("linux/amd64", "linux/amd645", False),
        ("linux/amd64", "windows/amd64", False),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64/v9", "linux/arm64", False),
        ("linux/arm/v7", "linux/arm", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/amd64", "", False),
        ("linux/amd64", None, True),
    ],
)
def test_platforms(allowed: str, platform: str | None, *, is_allowed: bool) -> None:
    found = objection(rule(platforms=[allowed]), facts(platform=platform))
    assert (found is None) is is_allowed


@pytest.mark.parametrize(
    ("settings", "known", "is_denied"),
    [
        ({"max_image_size": 10}, {"size": 10}, False),
        ({"max_image_size": 10}, {"size": 11}, True),
        ({"max_image_size": 10}, {"size": 11, "is_attachment": True}, True),
        ({"max_image_size": 10}, {"is_understood": False}, True),
        ({"platforms": ["linux/amd64"]}, {"is_understood": False}, True),
        ({"media_types": ["a/b"]}, {"is_understood": False}, True),
        ({"media_types": ["a/b"]}, {"types": ("a/b",)}, False),
        ({"media_types": ["a/b"]}, {"types": ("a/b", "c/d")}, True),
        ({"media_types": ["a/b"]}, {"types": ("c/d",), "is_attachment": True}, False),
        ({"media_types": ["a/b"]}, {"types": ()}, False),
        ({"platforms": ["linux/amd64"]}, {"platform": "", "is_attachment": True}, False),
        ({"deny": True}, {"is_attachment": True}, True),
    ],
    ids=str,
)
def test_conditions(settings: dict[str, Any], known: dict[str, Any], *, is_denied: bool) -> None:
    assert (objection(rule(**settings), facts(**known)) is not None) is is_denied


@pytest.mark.parametrize(
    ("known", "is_denied"),
    [
        ({}, False),
        ({"listed": frozenset({ONE, TWO})}, True),
        ({"listed": frozenset({TWO}), "is_attachment": True}, True),
        ({"parents": frozenset({TWO})}, True),
        ({"parents": frozenset({TWO, THREE})}, False),
        ({"is_understood": False}, False),
    ],
)
def test_denied_digests(tmp_path: Path, known: dict[str, Any], *, is_denied: bool) -> None:
    (tmp_path / "denied").write_text(TWO)
    found = rule(deny_digests_file=str(tmp_path / "denied"))
    assert (objection(found, facts(**known)) is not None) is is_denied


def test_the_sentence_names_policy_and_reason() -> None:
    assert rule(name="x", deny=True, because="SEC-1").sentence("why") == (
        "denied by policy 'x': why; SEC-1"
    )
    assert rule(deny=True).sentence("why") == "denied by policy '1': why"


@pytest.mark.parametrize(
    ("tag", "is_one"),
    [
        ("sha256-" + "a" * 64, True),
        ("sha256-" + "a" * 64 + ".sig", True),
        ("sha256-" + "a" * 64 + ".att", True),
        ("sha256-" + "a" * 64 + ".sbom", True),
        ("sha256-" + "a" * 64 + ".exe", False),
        ("sha256-" + "a" * 63, False),
        ("latest", False),
    ],
)
def test_tags_of_attachments(tag: str, *, is_one: bool) -> None:
    assert (ATTACHMENT_TAG.fullmatch(tag) is not None) is is_one


def test_two_policies_of_one_name_are_refused() -> None:
    policy = Policy(name="x", deny=True)
    with pytest.raises(ConfigError, match="two policies have the name 'x'"):
        compile_rules([policy, policy], make_selector)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("latest\n", "line 1"), (f"{ONE}\nsha256:12\n", "line 2")],
)
def test_a_bad_file_of_digests_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "denied").write_text(content)
    with pytest.raises(ConfigError, match=rf"policies\.0: .*denied.*{said}"):
        rule(deny_digests_file=str(tmp_path / "denied"))


def test_a_bad_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("-----BEGIN EC PRIVATE KEY-----")
    with pytest.raises(ConfigError, match="no public key"):
        rule(require={"cosign": {"keys": [str(tmp_path / "key")]}})


def test_digests_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "denied").write_text(f"# bad\n\n {ONE} # SEC-1\n{TWO}\n")
    found = rule(deny_digests_file=str(tmp_path / "denied"))
    assert found.denied_digests == {Digest(ONE), Digest(TWO)}
