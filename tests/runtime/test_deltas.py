"""Counts handed from one process to another are exact: nothing is lost, nothing counts twice."""

import json

from proxy.runtime import deltas
from proxy.runtime.metrics import Metrics, Outcome


def test_what_is_taken_is_added_once() -> None:
    worker, main = Metrics(["docker.io"]), Metrics([])
    for _ in range(3):
        counters = worker.of("docker.io")
        counters.answered(Outcome.HIT, 10, manifest=True)
        counters.timed(Outcome.HIT, 0.002, 0.3)
        worker.cache.prepared_answers += 1
        worker.cache.access_decisions["allowed"] += 1
        for _ in range(2):  # the second time there is nothing
            deltas.add(main, json.loads(json.dumps(deltas.drain(worker))))
    total = main.of("docker.io")
    assert total.outcomes == {Outcome.HIT: 3} | {one: 0 for one in Outcome if one != "hit"}
    assert (total.bytes_to_clients, total.bytes_delivered, total.manifest_pulls) == (30, 30, 3)
    assert sum(total.duration[Outcome.HIT].counts) == 3
    assert round(total.duration[Outcome.HIT].total, 6) == 0.9
    assert main.cache.prepared_answers == 3
    assert main.cache.access_decisions["allowed"] == 3
    assert deltas.drain(worker) == {"upstreams": {}}


def test_totals_of_several_processes_add_up() -> None:
    main = Metrics(["docker.io"])
    main.of("docker.io").answered(Outcome.MISS, 5, manifest=False)
    for _ in range(2):
        worker = Metrics(["docker.io"])
        worker.of("docker.io").answered(Outcome.HIT, 7, manifest=False)
        deltas.add(main, deltas.drain(worker))
    assert main.total().snapshot()["requests"] == 3
    assert main.total().bytes_to_clients == 19
