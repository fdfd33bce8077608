"""The rules: a pure function that agrees with a naive interpreter of the settings."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.memberships import Memberships
from proxy.access.principals import OPERATOR, Method, Principal
from proxy.access.rules import Action, Decision, Rules
from proxy.core.errors import ConfigError, Denied, Unauthorized
from proxy.core.names import Repo, Target
from proxy.core.routing import Router
from proxy.settings import Settings
from proxy.settings.access import Access, Rule

ROUTER = Router(Settings())
APP = Target("docker.io", Repo("library/app"))
TEAM = Target("ghcr.io", Repo("acme/team/app"))
ANONYMOUS, ANN = Principal("127.0.0.1"), Principal("127.0.0.1", "ann", method=Method.PASSWORD)
DENIED = Decision(is_allowed=False, text="no rule matches")


def rules(*listed: dict[str, Any], **settings: Any) -> Rules:
    access = Access.model_validate({"rules": listed, **settings})
    return Rules(access, ROUTER.parse_selector)


def test_the_first_rule_that_matches_decides() -> None:
    found = rules(
        {"deny": "pull", "images": ["docker.io/*/miner*"], "because": "SEC-12"},
        {"allow": "pull", "images": ["docker.io/library/**"]},
        {"deny": "pull", "images": ["docker.io/library/app"]},
    )
    miner = found.decide(ANN, Action.PULL, Target("docker.io", Repo("library/miner2")))
    assert (miner.is_allowed, miner.rule, miner.because) == (False, 1, "SEC-12")
    assert miner.text == "deny pull docker.io/*/miner* to everybody"
    app = found.decide(ANN, Action.PULL, APP)
    assert (app.is_allowed, app.rule) == (True, 2)
    assert found.decide(ANN, Action.PULL, TEAM) == DENIED


@pytest.mark.parametrize("action", [Action.CONNECT, Action.PULL, Action.CATALOG, Action.OBSERVE])
def test_without_settings_everybody_may_pull(action: Action) -> None:
    rules().decide(ANONYMOUS, action, APP).enforce()


@pytest.mark.parametrize("principal", [ANONYMOUS, ANN])
def test_without_rules_only_the_operator_may_administer(principal: Principal) -> None:
    with pytest.raises(Denied):
        rules().decide(principal, Action.OPERATE, None).enforce()
    rules().decide(OPERATOR, Action.OPERATE, None).enforce()
    rules().decide(Principal("::1", method=Method.ADMIN_TOKEN), Action.OPERATE, None).enforce()


@pytest.mark.parametrize("action", [one for one in Action if one is not Action.OBSERVE])
def test_who_may_not_be_anonymous_has_to_log_in_for_everything(action: Action) -> None:
    closed = rules({"allow": "pull"}, {"allow": "admin", "to": ["user:ann"]}, anonymous=False)
    with pytest.raises(Unauthorized):
        closed.decide(ANONYMOUS, action, APP).enforce()
    closed.decide(ANN, action, APP).enforce()


def test_health_is_shown_to_everybody() -> None:
    rules(anonymous=False).decide(ANONYMOUS, Action.OBSERVE, None).enforce()


def test_a_login_is_asked_for_only_where_it_can_help() -> None:
    mine = rules({"allow": "pull", "to": ["user:ann"]})
    with pytest.raises(Unauthorized):
        mine.decide(ANONYMOUS, Action.PULL, APP).enforce()
    with pytest.raises(Denied):
        mine.decide(Principal("127.0.0.1", "bob"), Action.PULL, APP).enforce()
    mine.decide(ANN, Action.PULL, APP).enforce()


ALLOWED_TO = {
    "a user, before": [{"allow": "pull", "to": ["user:ann"]}, {"deny": "pull"}],
    "a group": [{"allow": "pull", "to": ["network:n", "group:dev"]}],
}
ALLOWED_TO_NONE = {
    "everybody is denied": [
        {"deny": "pull", "because": "SEC-12"},
        {"allow": "pull", "to": ["user:ann"]},
    ],
    "a network is denied": [
        {"deny": "pull", "to": ["network:here"]},
        {"allow": "pull", "to": ["user:ann"]},
    ],
    "another network": [{"allow": "pull", "to": ["network:n"]}],
    "other images": [{"allow": "pull", "images": ["ghcr.io/acme/**"], "to": ["user:ann"]}],
    "to administer": [{"allow": "admin", "to": ["user:ann"]}],
    "some users are denied": [{"deny": "pull", "to": ["user:ann"]}],
}


@pytest.mark.parametrize(
    ("listed", "is_asked"),
    [(one, True) for one in ALLOWED_TO.values()]
    + [(one, False) for one in ALLOWED_TO_NONE.values()],
    ids=[*ALLOWED_TO, *ALLOWED_TO_NONE],
)
def test_nobody_is_asked_to_log_in_in_vain(listed: list[dict[str, Any]], is_asked: bool) -> None:
    here = Principal("127.0.0.1", networks=frozenset({"here"}))
    target = Target("docker.io", Repo("acme/app"))
    decision = rules(*listed).decide(here, Action.PULL, target)
    assert (decision.is_allowed, decision.login_helps) == (False, is_asked)
    with pytest.raises(Unauthorized if is_asked else Denied):
        decision.enforce()


def test_where_no_rule_names_an_administrator_a_login_is_of_no_use() -> None:
    for found in (
        rules({"allow": "pull"}),
        rules({"deny": "admin"}, {"allow": "admin", "to": ["user:ann"]}),
    ):
        with pytest.raises(Denied, match=r"only the operator|access denied"):
            found.decide(ANONYMOUS, Action.OPERATE, None).enforce()


@pytest.mark.parametrize(
    ("pattern", "name", "is_allowed"),
    [
        ("*/acme/**", "ghcr.io/acme/app", True),
        ("*/acme/**", "ghcr.io/mallory/acme/app", False),
        ("*.io/acme/**", "ghcr.io/mallory/x.io/acme/app", False),
        ("?hcr.io/acme/**", "ghcr.io/acme/app", True),
        ("**/acme/**", "ghcr.io/mallory/acme/app", True),
        ("*", "ghcr.io/mallory/acme/app", True),
    ],
)
def test_a_pattern_that_allows_begins_with_the_registry(
    pattern: str, name: str, is_allowed: bool
) -> None:
    upstream, _, repo = name.partition("/")
    target = Target(upstream, Repo(repo))
    allow = rules({"allow": "pull", "images": [pattern]})
    assert allow.decide(ANN, Action.PULL, target).is_allowed is is_allowed
    deny = rules({"deny": "pull", "images": [pattern]}, {"allow": "pull"})
    assert not deny.decide(ANN, Action.PULL, target).is_allowed, "at any depth"


def test_to_administer_does_not_mean_to_pull() -> None:
    ops = rules({"allow": "admin", "to": ["user:ann"]})
    ops.decide(ANN, Action.OPERATE, None).enforce()
    with pytest.raises(Denied):
        ops.decide(ANN, Action.PULL, APP).enforce()
    with pytest.raises(Unauthorized):
        ops.decide(ANONYMOUS, Action.OPERATE, None).enforce()


def test_the_operator_may_do_everything() -> None:
    closed = rules({"deny": "pull"}, {"deny": "admin"}, anonymous=False)
    for action in Action:
        closed.decide(OPERATOR, action, APP).enforce()


def test_a_token_reaches_only_the_repositories_that_it_was_made_for() -> None:
    limited = Principal("127.0.0.1", "ann", scopes=frozenset({str(APP)}))
    found = rules({"allow": "pull"}, {"allow": "admin", "to": ["user:ann"]})
    found.decide(limited, Action.PULL, APP).enforce()
    for action, target in ((Action.PULL, TEAM), (Action.OPERATE, None)):
        with pytest.raises(Unauthorized):
            found.decide(limited, action, target).enforce()


@pytest.mark.parametrize(
    ("entry", "matches"),
    [
        ("user:ann", {"ann"}),
        ("user:ci:acme/*", {"ci:acme/app"}),
        ("user:ci:acme/**", {"ci:acme/app", "ci:acme/team/app"}),
        ("user:*", {"ann", "bob"}),
        ("user:**", {"ann", "bob", "ci:acme/app", "ci:acme/team/app", "ci:acme2/app"}),
        ("user:ci:*/app", {"ci:acme/app", "ci:acme2/app"}),
        ("user:nn", set()),
    ],
)
def test_names_of_users_have_components_like_names_of_images(entry: str, matches: set[str]) -> None:
    found = rules({"allow": "pull", "to": [entry]})
    users = ("ann", "bob", "ci:acme/app", "ci:acme/team/app", "ci:acme2/app")
    allowed = {
        user
        for user in users
        if found.decide(Principal("127.0.0.1", user), Action.PULL, APP).is_allowed
    }
    assert allowed == matches
    assert not found.decide(ANONYMOUS, Action.PULL, APP).is_allowed


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("10.1.2.3", {"ci", "all"}),
        ("::ffff:10.1.2.3", {"ci", "all"}),
        ("10.2.2.3", {"all"}),
        ("2001:db8::1", {"lab"}),
        ("fe80::1%eth0", set()),
        ("", set()),
        ("unix", set()),
        (None, set()),
    ],
)
def test_networks_hold_addresses(address: str | None, names: set[str]) -> None:
    found = Memberships(
        {"ci": ["10.1.0.0/16"], "all": ["10.0.0.0/8"], "lab": ["2001:db8::/32"]}, {}
    )
    assert found.complete(Principal(address)).networks == names


def test_configured_groups_are_added_to_those_of_the_credential() -> None:
    found = Memberships({}, {"dev": ["ann", "bob"], "ops": ["bob"]})
    ann = found.complete(Principal("::1", "ann", groups=frozenset({"claimed"})))
    assert ann.groups == {"claimed", "dev"}
    assert found.complete(Principal("::1")).groups == set()


def test_a_network_that_a_client_claims_does_not_count() -> None:
    claimed = Principal("192.0.2.1", networks=frozenset({"ci"}))
    assert Memberships({"ci": ["10.0.0.0/8"]}, {}).complete(claimed).networks == set()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"allow": "pull", "images": ["docker.io/library/app:1"]}, "rules are about repositories"),
        ({"allow": "pull", "images": ["a//b*"]}, "is no name"),
        ({"allow": "pull", "images": ["Upper/case"]}, "is not a repository name"),
    ],
)
def test_a_pattern_of_no_repository_is_an_error(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"rule 2: .*{text}"):
        rules({"allow": "pull"}, rule)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"allow": "pull", "deny": "pull"},
        {"allow": "push"},
        {"allow": "pull", "to": ["ann"]},
        {"allow": "pull", "to": ["user:"]},
        {"allow": "admin"},
        {"deny": "admin", "images": ["docker.io/**"]},
    ],
)
def test_a_rule_that_says_nothing_clear_is_an_error(rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rules\.0"):
        Access.model_validate({"rules": [rule]})


PARTS = st.sampled_from(["a", "ab", "b"])
PATTERNS = st.lists(st.sampled_from(["a", "ab", "*", "a*", "**"]), min_size=1, max_size=3).map(
    lambda parts: "/".join(["docker.io", *parts])
)
ENTRIES = st.one_of(
    st.sampled_from(["user:a", "user:a/*", "user:**", "group:g", "group:g*", "network:n"])
)
RULES = st.builds(
    lambda verb, images, to: Rule(**{verb: "pull"}, images=tuple(images), to=tuple(to)),
    st.sampled_from(["allow", "deny"]),
    st.lists(PATTERNS, min_size=1, max_size=2),
    st.lists(ENTRIES, max_size=2),
)
PRINCIPALS = st.builds(
    Principal,
    st.just("127.0.0.1"),
    st.sampled_from([None, "a", "a/b", "a/b/c", "b"]),
    st.frozensets(st.sampled_from(["g", "gh", "h"])),
    st.frozensets(st.sampled_from(["n", "m"])),
)


def naively(text: str, name: str) -> bool:
    """Match with one regular expression that is written down differently."""
    if text == "docker.io/*":
        text = "docker.io/library/*"
    pattern = re.escape(text).replace(r"/\*\*/", "/(.*/)?").replace(r"\*\*/", "(.*/)?")
    pattern = re.sub(r"/\\\*\\\*$", "(/.*)?", pattern).replace(r"\*\*", ".*")
    return re.fullmatch(pattern.replace(r"\*", "[^/]*"), name) is not None


def interpreted(listed: list[Rule], principal: Principal, name: str) -> int | None:
    """Return the number of the rule that decides."""
    for number, rule in enumerate(listed, 1):
        names = {f"group:{group}" for group in principal.groups}
        names |= {f"network:{network}" for network in principal.networks}
        names |= set() if principal.user is None else {f"user:{principal.user}"}
        is_meant = not rule.to or any(
            naively(entry.partition(":")[2], known.partition(":")[2])
            for entry in rule.to
            for known in names
            if entry.partition(":")[0] == known.partition(":")[0]
        )
        if is_meant and any(naively(image, name) for image in rule.images):
            return number
    return None


@given(st.lists(RULES, min_size=1, max_size=6), PRINCIPALS, st.lists(PARTS, min_size=2, max_size=4))
def test_rules_agree_with_a_naive_interpreter(
    listed: list[Rule], principal: Principal, parts: list[str]
) -> None:
    target = Target("docker.io", Repo("/".join(parts)))
    number = interpreted(listed, principal, str(target))
    found = Rules(Access(rules=tuple(listed)), ROUTER.parse_selector)
    decision = found.decide(principal, Action.PULL, target)
    assert decision.rule == number
    assert decision.is_allowed == (number is not None and listed[number - 1].allow is not None)


USERS = [(user, groups) for user in ("a", "a/b", "b") for groups in (set[str](), {"g"}, {"gh"})]


@given(st.lists(RULES, min_size=1, max_size=6), PRINCIPALS, st.lists(PARTS, min_size=2, max_size=4))
def test_a_login_is_asked_for_wherever_a_user_may_what_the_client_may_not(
    listed: list[Rule], principal: Principal, parts: list[str]
) -> None:
    target = Target("docker.io", Repo("/".join(parts)))
    access = Access(htpasswd_file=Path("users"), rules=tuple(listed))
    found = Rules(access, ROUTER.parse_selector)
    client = Principal("127.0.0.1", networks=principal.networks)
    decision = found.decide(client, Action.PULL, target)
    numbers = (
        interpreted(listed, replace(client, user=user, groups=frozenset(groups)), str(target))
        for user, groups in USERS
    )
    may_some = any(number and listed[number - 1].allow for number in numbers)
    if may_some and not decision.is_allowed:
        assert decision.login_helps
