"""The fluid network against cases that can be computed by hand."""

import pytest

from benchmarks.fluid import Flow, Link, Network, share

GB = 1e9


def ends(*flows: Flow) -> list[float]:
    """The time at which each flow is complete."""
    network = Network()
    done: dict[int, float] = {}
    for number, flow in enumerate(flows):
        flow.then = lambda number=number: done.setdefault(number, network.now)  # type: ignore[misc]
        network.send(flow)
    network.run()
    return [done[number] for number in range(len(flows))]


def test_one_flow_takes_its_size_by_the_bandwidth() -> None:
    assert ends(Flow(10 * GB, {Link("cable", 2 * GB): 1})) == pytest.approx([5])


@pytest.mark.parametrize("nodes", [1, 2, 7, 10_000])
def test_nodes_that_share_a_link_take_as_many_times_as_long(nodes: int) -> None:
    cable = Link("cable", 2 * GB)
    assert ends(Flow(10 * GB, {cable: nodes})) == pytest.approx([5 * nodes])
    if nodes < 10:
        apart = [Flow(10 * GB, {cable: 1}) for _ in range(nodes)]
        assert ends(*apart) == pytest.approx([5 * nodes] * nodes)


def test_the_narrowest_link_decides() -> None:
    wide, narrow = Link("wide", 10 * GB), Link("narrow", GB)
    assert ends(Flow(5 * GB, {wide: 1, narrow: 1})) == pytest.approx([5])


def test_what_one_cannot_use_the_others_get() -> None:
    cable, narrow = Link("cable", 3 * GB), Link("narrow", 0.5 * GB)
    slow, fast = Flow(GB, {cable: 1, narrow: 1}), Flow(GB, {cable: 1})
    full = share([slow, fast])
    assert (slow.rate, fast.rate) == (pytest.approx(0.5 * GB), pytest.approx(2.5 * GB))
    assert full == {cable, narrow}


def test_a_limit_is_kept() -> None:
    cable = Link("cable", 3 * GB)
    limited, free = Flow(GB, {cable: 1}, limit=GB), Flow(4 * GB, {cable: 1})
    assert ends(limited, free) == pytest.approx([1, 1 + 2 / 3])


def test_a_short_flow_leaves_its_share() -> None:
    cable = Link("cable", 2 * GB)
    assert ends(Flow(GB, {cable: 1}), Flow(3 * GB, {cable: 1})) == pytest.approx([1, 2])


def test_bytes_are_not_sent_before_they_have_arrived() -> None:
    slow, fast = Link("slow", GB), Link("fast", 10 * GB)
    arriving = Flow(4 * GB, {slow: 1})
    following = Flow(4 * GB, {fast: 1}, source=arriving)
    assert ends(arriving, following) == pytest.approx([4, 4])


def test_a_late_reader_catches_up() -> None:
    slow, fast = Link("slow", GB), Link("fast", 3 * GB)
    network, done = Network(), []
    arriving = network.send(Flow(4 * GB, {slow: 1}))
    late = Flow(4 * GB, {fast: 1}, source=arriving, then=lambda: done.append(network.now))
    network.at(2.0, lambda: network.send(late) and None)
    assert network.run() == pytest.approx(4)
    assert done == [pytest.approx(4)]


def test_a_reader_that_is_slower_than_its_source_goes_on_alone() -> None:
    arriving = Flow(4 * GB, {Link("in", 2 * GB): 1})
    following = Flow(4 * GB, {Link("out", GB): 1}, source=arriving)
    assert ends(arriving, following) == pytest.approx([2, 4])


def test_a_chain_of_three() -> None:
    first = Flow(4 * GB, {Link("a", GB): 1})
    second = Flow(4 * GB, {Link("b", 2 * GB): 1}, source=first)
    third = Flow(4 * GB, {Link("c", 3 * GB): 5}, source=second)
    # Five readers share 3 GB/s, so each gets 0.6: slower than what they read from.
    assert ends(first, second, third) == pytest.approx([4, 4, 4 / 0.6])


def test_full_links_are_counted() -> None:
    network = Network()
    narrow, wide = Link("narrow", GB), Link("wide", 10 * GB)
    network.send(Flow(3 * GB, {narrow: 1, wide: 1}))
    network.run()
    assert network.busy == {narrow: pytest.approx(3)}
