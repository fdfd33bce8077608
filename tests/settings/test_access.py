"""The settings of access, credentials and policies together, as a company writes them."""

from pathlib import Path

import pytest

from proxy.access.control import Policy
from proxy.access.principals import Principal
from proxy.access.rules import Action
from proxy.core.errors import ConfigError
from proxy.core.routing import Router
from proxy.settings import loading
from proxy.settings.policies import Cosign
from proxy.settings.upstreams import UpstreamCredentials

COMPANY = """
access:
  anonymous: true                      # false: everybody must show who they are
  htpasswd_file: /etc/millpond/htpasswd          # bcrypt
  tokens_file: /etc/millpond/tokens.yaml
  oidc:                                # ID tokens as passwords
    - {issuer: https://token.example, audience: millpond, user: "ci:{repository}", groups_claim: groups}
  client_certificates: {ca_file: /etc/millpond/clients.pem, user: cn}
  networks: {ci: [10.0.0.0/8], lab: ["2001:db8::/32"]}
  trusted_proxies: [127.0.0.1]
  rules:                               # the first that matches decides; none matches: denied
    - {deny: pull, images: ["docker.io/*/miner*"], because: "SEC-12"}
    - {allow: pull, images: ["docker.io/library/**"]}                     # everybody
    - {allow: pull, images: ["ghcr.io/acme/**"], to: ["group:dev", "network:ci", "user:ci:acme/*"]}
    - {allow: admin, to: ["user:ops"]}
  audit_file: /var/log/millpond/audit.jsonl
  limits: {requests_per_second: 200, bytes_per_second: 500MB/s, downloads: 20}   # per client
upstreams:
  ghcr.io: {credentials: {docker_config: /root/.docker/config.json}}
  123456789012.dkr.ecr.eu-west-1.amazonaws.com: {credentials: {aws: {}}}
  europe-docker.pkg.dev: {credentials: {google: {}}}
  acme.azurecr.io: {credentials: {azure: {}}}
  registry.acme.example: {credentials: {exec: {command: [/usr/bin/helper], env: {}}}}
  private.example: {credentials: caller, caller_ttl: 5m, caller_stale: 1h}
  docker.io: {max_bandwidth: 100MB/s}
policies:
  - {images: ["docker.io/acme/**"], require: {cosign: {keys: [cosign.pub]}}}
  - {images: ["**"], deny_digests_file: /etc/millpond/denied, max_image_size: 20GiB, platforms: [linux/amd64, linux/arm64]}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loading, "SYSTEM_FILE", tmp_path / "absent.yaml")
    file = tmp_path / "config.yaml"
    file.write_text(COMPANY)
    return file


def test_everything_that_a_company_configures_is_loaded(file: Path) -> None:
    settings = loading.load(file)
    access, upstreams = settings.access, settings.upstreams
    assert access.is_configured
    assert (access.htpasswd_file, access.tokens_file, access.audit_file) == (
        Path("/etc/millpond/htpasswd"),
        Path("/etc/millpond/tokens.yaml"),
        Path("/var/log/millpond/audit.jsonl"),
    )
    assert [(one.issuer, one.user, one.groups_claim) for one in access.oidc] == [
        ("https://token.example", "ci:{repository}", "groups")
    ]
    assert access.client_certificates is not None
    assert (access.limits.requests_per_second, access.limits.bytes_per_second) == (200, 500_000_000)
    assert access.limits.downloads == 20
    assert upstreams["private.example"].asks_as_caller
    assert upstreams["private.example"].caller_ttl == 300
    assert upstreams["private.example"].caller_stale == 3600
    assert upstreams["docker.io"].max_bandwidth == 100_000_000
    kinds = {}
    for name, upstream in upstreams.items():
        if isinstance(upstream.credentials, UpstreamCredentials):
            kinds[name] = set(upstream.credentials.model_dump(exclude_none=True))
    assert kinds == {
        "ghcr.io": {"docker_config"},
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com": {"aws"},
        "europe-docker.pkg.dev": {"google"},
        "acme.azurecr.io": {"azure"},
        "registry.acme.example": {"exec"},
    }
    signed, bounds = settings.policies
    assert signed.require is not None
    assert signed.require.cosign == Cosign(keys=(Path("cosign.pub"),))
    assert (bounds.max_image_size, bounds.platforms) == (
        20 * 1024**3,
        ("linux/amd64", "linux/arm64"),
    )


@pytest.mark.parametrize(
    ("who", "image", "rule"),
    [
        (Principal("192.0.2.1"), "docker.io/library/alpine", 2),
        (Principal("192.0.2.1"), "docker.io/evil/miner2", 1),
        (Principal("192.0.2.1"), "ghcr.io/acme/app", None),
        (Principal("10.1.2.3"), "ghcr.io/acme/app", 3),
        (Principal("192.0.2.1", "ann", groups=frozenset({"dev"})), "ghcr.io/acme/deep/app", 3),
        (Principal("192.0.2.1", "ci:acme/web"), "ghcr.io/acme/app", 3),
        (Principal("192.0.2.1", "ci:other/web"), "ghcr.io/acme/app", None),
        (Principal("192.0.2.1", "ops"), "quay.io/any/thing", None),
    ],
)
def test_its_rules_decide(file: Path, who: Principal, image: str, rule: int | None) -> None:
    settings = loading.load(file)
    router = Router(settings)
    policy = Policy.of(settings.access, router.parse_selector)
    target = router.parse_image(image).target
    decided = policy.rules.decide(policy.memberships.complete(who), Action.PULL, target)
    assert decided.rule == rule


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("acme.azurecr.io", "https://acme.azurecr.io"),
        ("registry.acme.example:5000", "https://registry.acme.example:5000"),
        ("10.0.0.5:5000", "https://10.0.0.5:5000"),
    ],
)
def test_a_name_that_is_a_host_is_the_address_too(file: Path, name: str, url: str) -> None:
    file.write_text(f'upstreams: {{"{name}": {{private: true}}}}')
    assert loading.load(file).upstreams[name].url == url


def test_a_name_without_a_dot_needs_an_address(file: Path) -> None:
    file.write_text("upstreams: {lab: {private: true}}")
    with pytest.raises(ConfigError, match=r"upstreams\.lab\.url: must be set"):
        loading.load(file)
