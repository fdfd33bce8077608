"""Access control: decisions are cached by their inputs, and a reload replaces all in one step."""

import itertools
from typing import Any

import pytest

from proxy.access import control
from proxy.access.control import DecisionCache, Policy
from proxy.access.principals import OPERATOR, Principal
from proxy.access.rules import Action, Decision
from proxy.core.names import Repo, Target
from proxy.core.routing import Router
from proxy.settings import Settings
from tests.access.company import ACCESS, NODE, People
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

APP, OTHER = Target("docker.io", Repo("library/app")), Target("ghcr.io", Repo("acme/app"))
IMAGE = content.image(1, layers=(1000,))
PATH = "/v2/library/app/manifests/latest"


class Counting:
    """Allows everything, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def decide(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        self.asked += 1
        return Decision(is_allowed=True, text=f"{principal} {action} {target}")


def test_what_matters_for_a_decision_keeps_it_apart() -> None:
    rules = Counting()
    decisions = DecisionCache(rules)
    different = [
        Principal(user=user, groups=groups, networks=networks, scopes=scopes)
        for user, groups, networks, scopes in itertools.product(
            (None, "ann"),
            (frozenset[str](), frozenset({"dev"})),
            (frozenset[str](), frozenset({"ci"})),
            (None, frozenset[str](), frozenset({str(APP)})),
        )
    ]
    seen = {
        decisions.decide(principal, Action.PULL, target).text
        for principal in different
        for target in (APP, OTHER)
    }
    assert len(seen) == rules.asked == 2 * len(different)
    for principal in different:
        decisions.decide(principal, Action.PULL, APP)
    assert rules.asked == 2 * len(different)


def test_the_address_does_not_matter_beyond_its_networks() -> None:
    rules = Counting()
    decisions = DecisionCache(rules)
    for number in range(100):
        decisions.decide(Principal(f"10.0.0.{number}"), Action.PULL, APP)
    assert rules.asked == 1


def test_an_operator_is_not_taken_for_an_anonymous_client() -> None:
    policy = Policy.of(
        Settings.model_validate({"access": {"anonymous": False}}).access,
        Router(Settings()).parse_selector,
    )
    assert policy.rules.decide(OPERATOR, Action.PULL, APP).is_allowed
    assert not policy.rules.decide(Principal(), Action.PULL, APP).is_allowed


def test_decisions_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_DECISIONS", 10)
    rules = Counting()
    decisions = DecisionCache(rules)
    for number in range(20):
        decisions.decide(Principal(user=str(number)), Action.PULL, APP)
    decisions.decide(Principal(user="19"), Action.PULL, APP)
    assert rules.asked == 20
    decisions.decide(Principal(user="0"), Action.PULL, APP)
    assert rules.asked == 21, "the oldest was forgotten"


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", IMAGE, tags=["latest"])
    return await start(identifier=People(), access=ACCESS)


async def reloaded(proxy: Proxy, upstream: FakeUpstream, access: dict[str, Any]) -> None:
    document = {"upstreams": {"docker.io": {"url": upstream.url}}, "access": access}
    await proxy.app.reload(Settings.model_validate(document))


@pytest.mark.parametrize(
    ("access", "status"),
    [
        ({}, 200),
        ({"rules": [{"deny": "pull"}]}, 403),
        ({"rules": [{"allow": "pull", "to": ["group:dev"]}]}, 200),
        ({"rules": [{"allow": "pull", "to": ["group:night"]}]}, 403),
        (
            {
                "rules": [{"allow": "pull", "to": ["group:night"]}],
                "groups": {"night": ["ann"]},
            },
            200,
        ),
        (
            {
                "rules": [{"deny": "pull", "to": ["network:here"]}],
                "networks": {"here": ["127.0.0.0/8"]},
            },
            403,
        ),
    ],
)
async def test_rules_groups_and_networks_take_effect_on_remembered_requests(
    proxy: Proxy, upstream: FakeUpstream, access: dict[str, Any], status: int
) -> None:
    for _ in range(3):
        assert (await proxy.get(PATH, Authorization="Bearer ann")).status == 200
    await reloaded(proxy, upstream, access)
    for _ in range(3):
        assert (await proxy.get(PATH, Authorization="Bearer ann")).status == status


async def test_trusted_proxies_take_effect(proxy: Proxy, upstream: FakeUpstream) -> None:
    rules = [{"allow": "pull", "to": ["network:ci"]}]
    access = {"rules": rules, "networks": {"ci": [f"{NODE}/32"]}}
    await reloaded(proxy, upstream, access)
    for _ in range(3):
        assert (await proxy.get(PATH, X_Forwarded_For=NODE)).status == 403
    await reloaded(proxy, upstream, access | {"trusted_proxies": ["127.0.0.1"]})
    for _ in range(3):
        assert (await proxy.get(PATH, X_Forwarded_For=NODE)).status == 200
    assert (await proxy.get(PATH)).status == 403
