"""The model of a rollout against cases that can be computed by hand."""

import dataclasses

import pytest

from benchmarks import fleet_model
from benchmarks.fleet_scenarios import Direct, Fleet, NodeFleet, RegistryTwo, WarmFleet
from benchmarks.fleet_site import GB, GBIT, MB, Prices, Protocol, Site

ONE = (1 * GB,)
SITE = Site(
    uplink=8 * GBIT,  # 1 GB/s
    registry_stream=10 * GB,
    node_link=1000 * GBIT,
    replica_link=1000 * GBIT,
    replica_cores=1000,
    spread=0.0,
)


def of(**changes: float) -> Site:
    return dataclasses.replace(SITE, **changes)


@pytest.mark.parametrize("nodes", [1, 5, 400])
def test_without_a_cache_every_node_takes_its_share_of_the_uplink(nodes: int) -> None:
    outcome = Direct(SITE, nodes, 0, ONE).play()
    assert outcome.seconds == pytest.approx(nodes)
    assert (outcome.bodies, outcome.upstream_bytes) == (nodes, nodes * GB)
    assert (outcome.bucket_requests, outcome.redis_commands) == (0, 0)


def test_a_node_alone_is_as_fast_as_its_cable() -> None:
    assert Direct(of(node_link=2 * GBIT), 1, 0, ONE).play().seconds == pytest.approx(4)


def test_a_connection_to_the_registry_gives_what_it_gives() -> None:
    slow = of(registry_stream=100 * MB)
    assert Direct(slow, 1, 0, ONE).play().seconds == pytest.approx(10)
    four = dataclasses.replace(slow, registry_streams=4)
    assert Fleet(four, 1, 1, ONE).play().seconds == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize(("nodes", "replicas"), [(1, 1), (12, 3), (400, 30)])
def test_a_fleet_fetches_once_however_many_ask(nodes: int, replicas: int) -> None:
    outcome = Fleet(SITE, nodes, replicas, ONE).play()
    assert (outcome.bodies, outcome.upstream_bytes) == (1, GB)
    assert outcome.heads == 1
    assert outcome.puts == Protocol().puts(GB)
    assert outcome.seconds == pytest.approx(1, rel=0.01)


def test_the_cable_of_a_replica_is_shared_by_its_nodes() -> None:
    site = of(replica_link=8 * GBIT, uplink=800 * GBIT)
    assert Fleet(site, 40, 1, ONE).play().seconds == pytest.approx(40, rel=0.03)
    # Of three, one also sends to the two others: 4 nodes and 2 replicas share its cable, and the
    # upload joins once the content is there.
    three = Fleet(site, 12, 3, ONE).play()
    assert 6 <= three.seconds <= 7.1
    assert three.narrowest == "link out of replica 0"


def test_it_matters_who_downloads() -> None:
    site = of(replica_link=8 * GBIT, uplink=800 * GBIT)
    halves = (GB, GB)
    one, two = Fleet(site, 12, 3, halves), Fleet(site, 12, 3, halves)
    one.downloaders, two.downloaders = {0: 0, 1: 0}, {0: 0, 1: 2}
    # One cable carries 4 nodes and 2 replicas twice, or 4 nodes twice and 2 replicas once.
    assert one.play().seconds == pytest.approx(2 * 6 + 2, abs=2)
    assert two.play().seconds < one.outcome.seconds
    assert two.outcome.bodies == 2


def test_what_was_pulled_before_comes_from_the_bucket() -> None:
    rollout = WarmFleet(SITE, 12, 3, ONE)
    outcome = rollout.play()
    assert (outcome.bodies, outcome.gets, outcome.heads) == (1, 2, 0)
    assert outcome.seconds == pytest.approx(GB / rollout.costs.bucket_stream, rel=0.01)
    assert WarmFleet(SITE, 12, 1, ONE).play().seconds < 0.1


def test_each_replica_asks_redis_once_for_each_digest() -> None:
    outcome = Fleet(SITE, 12, 3, (GB, GB)).play()
    # Each of three finds the tag and claims its check; one settles it. For each of two manifests
    # one has two commands, and two have three. Each has two for each layer.
    image = 3 * 2 + 1 + 2 * (2 + 2 * 3)
    assert outcome.redis_commands - outcome.renewals == pytest.approx(image + 3 * 2 * 2)
    # Two leases for two seconds each, renewed every 0.6.
    assert outcome.renewals == pytest.approx(2 * 2 / 0.6)


def test_replicas_say_that_they_live_also_when_nobody_pulls() -> None:
    outcome = Fleet(SITE, 3, 3, ONE).play()
    # Every 2 s: that it lives, how long that is kept, and the list; a ping every second, the clock
    # every 10 s; what was used every 5 s, and a tag compared every 15 s.
    each = 3 / 2 + 1.1 + 1 / 5 + 1 / 15
    assert outcome.redis_always == pytest.approx(3 * each)
    assert outcome.redis_peak > outcome.redis_always


def test_redis_is_the_limit_of_replicas_on_ten_thousand_nodes() -> None:
    few, many = (NodeFleet(SITE, nodes, nodes, ONE).play() for nodes in (1000, 10_000))
    assert few.redis_load < 0.5
    assert many.redis_load > 1
    assert Direct(SITE, 10, 0, ONE).play().redis_load == 0


def test_registry_two_fetches_for_every_node_that_is_early() -> None:
    outcome = RegistryTwo(SITE, 12, 1, ONE).play()
    assert outcome.bodies == 12 + 1
    assert outcome.seconds == pytest.approx(13, rel=0.02)


def test_registry_two_serves_from_its_disk_afterwards() -> None:
    late = of(spread=1000.0)
    outcome = RegistryTwo(late, 4, 1, ONE).play()
    assert outcome.bodies == 2  # for the first client, and for the disk


def test_on_every_node_the_holder_sends_to_all_others() -> None:
    site = of(node_link=8 * GBIT, uplink=800 * GBIT)
    outcome = NodeFleet(site, 11, 11, ONE).play()
    assert outcome.seconds == pytest.approx(10)
    assert outcome.bodies == 1
    assert outcome.narrowest == "link out of the node that downloads"


def test_an_upload_in_parts_is_three_kinds_of_requests() -> None:
    protocol = Protocol()
    assert [protocol.puts(size) for size in (1, protocol.part, 3 * protocol.part + 1)] == [1, 1, 6]


def test_dollars_are_those_of_the_list() -> None:
    outcome = Direct(SITE, 10, 0, ONE).play()
    cost = fleet_model.monthly(outcome, Prices(nat_gb=0.5))
    assert cost == {"NAT": 10 * 0.5 * 22, "zones": 0, "bucket": 0, "machines": 0}
    fleet = fleet_model.monthly(Fleet(SITE, 3, 3, ONE).play())
    assert fleet["zones"] == pytest.approx(3 * 2 / 3 * 0.02 * 22)
    assert fleet["machines"] == pytest.approx((3 * 0.4536 + 0.032) * 730)
    assert fleet["NAT"] == pytest.approx(0.045 * 22)


def test_the_table_has_a_row_for_each_rollout() -> None:
    outcome = Fleet(SITE, 1000, 3, ONE).play()
    row = fleet_model.table([outcome]).splitlines()[-1]
    assert row.startswith("| 1,000 | Millpond, 3 replicas |")


def test_the_published_table_is_what_the_model_says() -> None:
    rows = fleet_model.TABLE.read_text().splitlines()
    some = [Direct(Site(), 10_000, 0).play(), Fleet(Site(), 1000, 3).play()]
    assert {*fleet_model.table(some).splitlines()} <= {*rows}
