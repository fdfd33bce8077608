"""The decisions of a worker by the current settings."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.access.principals import Principal
from proxy.app.workers.channel import ActiveSettings
from proxy.app.workers.decisions import Decisions
from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import Descriptor, TagRecord
from proxy.index.generations import Generations
from proxy.runtime.metrics import Metrics
from proxy.settings import Settings

TARGET = Target("docker.io", Repo("library/app"))
CLIENT = Principal("192.0.2.1")
RECORD = TagRecord(Descriptor("application/json", Digest("sha256:" + "0" * 64), 2), 1000.0)
Made = Callable[..., Decisions]


@pytest.fixture
def generations() -> Iterator[Generations]:
    table = Generations()
    yield table
    table.close()


@pytest.fixture
def made(generations: Generations) -> Made:
    def make(**settings: Any) -> Decisions:
        document = {"upstreams": {"docker.io": {}}} | settings
        active = ActiveSettings(Settings.model_validate(document), generations.settings)
        return Decisions(active, Metrics([]), generations)

    return make


def test_a_plain_hit_is_a_workers_until_other_settings_are_in_force(
    made: Made, generations: Generations
) -> None:
    decisions = made()
    assert decisions.allows(CLIENT, TARGET) is not None
    number = generations.change_settings()
    assert not decisions.is_current
    assert decisions.allows(CLIENT, TARGET) is None
    decisions.use(ActiveSettings(Settings.model_validate({}), number))
    assert decisions.allows(CLIENT, TARGET) is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"access": {"limits": {"requests_per_second": 5}}},
        {"policies": [{"images": ["docker.io/library/*"], "deny_digests_file": "/dev/null"}]},
        {"policies": [{"images": ["docker.io/library/*"], "max_image_size": "1GiB"}]},
        {"upstreams": {"docker.io": {"credentials": "caller"}}},
        {"access": {"rules": [{"deny": "pull"}]}},
    ],
    ids=["limits", "denied digests", "policy", "caller", "denied"],
)
def test_the_rest_is_left_to_the_main_process(made: Made, settings: dict[str, Any]) -> None:
    assert made(**settings).allows(CLIENT, TARGET) is None


def test_policies_of_other_repositories_do_not_matter(made: Made) -> None:
    other = [{"images": ["ghcr.io/**"], "max_image_size": "1GiB"}]
    assert made(policies=other).allows(CLIENT, TARGET) is not None


def test_a_tag_is_fresh_as_in_the_main_process(made: Made) -> None:
    decisions = made(freshness={"tag_ttl": "60s", "signature_ttl": "10s"})
    fresh = decisions.seconds_fresh
    assert fresh(TARGET, Tag("latest"), RECORD, 1020.0) == 40.0
    assert fresh(TARGET, Tag("latest"), RECORD, 1060.0) is None
    assert fresh(TARGET, Tag("latest"), RECORD, 999.0) is None  # the clock was set back
    signature = Tag("sha256-" + "0" * 64 + ".sig")
    assert fresh(TARGET, signature, RECORD, 1009.0) == 1.0
    assert fresh(TARGET, signature, RECORD, 1010.0) is None
    assert made(offline=True).seconds_fresh(TARGET, Tag("latest"), RECORD, 1001.0) is None
    assert made(offline=True).is_offline(TARGET)


def test_pulls_are_audited_with_access_or_a_file(made: Made) -> None:
    assert not made().is_audited
    assert made(access={"rules": [{"allow": "pull"}]}).is_audited
    assert made(access={"audit_file": "/tmp/audit.log"}).is_audited
