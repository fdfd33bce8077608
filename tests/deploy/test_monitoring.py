"""The alerts and the dashboard of `deploy/monitoring`, by metrics that exist, in Prometheus."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml

from tests.deploy.cluster import DEPLOY
from tests.fakes.upstream import FakeUpstream
from tests.parts import millpond, prometheus
from tests.parts.process import PATH, wait_until

FOLDER = DEPLOY / "monitoring"
DOCUMENTED = Path(__file__).parents[2] / "docs" / "operating.md"


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=FOLDER,
        env={"PATH": PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def panels() -> list[dict[str, Any]]:
    board = json.loads((FOLDER / "grafana.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[str]:
    """The expressions of the dashboard, with its variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            filled = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            yield filled.replace("$__range", "1h")


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def names(expressions: Iterator[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(r"millpond_\w+", text)}


def documented() -> set[str]:
    text = DOCUMENTED.read_text()
    histograms = set(re.findall(r"^\| `(millpond_\w+)` .*histogram", text, re.MULTILINE))
    return set(re.findall(r"^\| `(millpond_\w+)`", text, re.MULTILINE)) | {
        f"{name}_bucket" for name in histograms
    }


def test_promtool_accepts_the_rules_and_they_fire_as_meant() -> None:
    assert "17 rules found" in promtool("check", "rules", "alerts.yaml")
    assert "valid prometheus config" in promtool("check", "config", "prometheus.yaml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml")


def test_each_metric_exists() -> None:
    """A test of the documents holds the list there against the code."""
    used = names(rule["expr"] for rule in rules()) | names(queries())
    assert used
    assert used <= documented()


def test_each_alert_is_seen_to_fire() -> None:
    [cases] = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for case in cases["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}


def test_each_alert_says_what_happens_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert all(rule["annotations"][name] for name in ("summary", "description"))


def test_panels_have_their_own_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@pytest.mark.timeout(180)
async def test_prometheus_scrapes_and_evaluates(upstream: FakeUpstream) -> None:
    upstream.fail(status=500, kind="manifest")
    await asyncio.to_thread(scrape, upstream.url)


def scrape(upstream: str) -> None:
    with (
        millpond.running(upstream) as server,
        prometheus.running(FOLDER / "alerts.yaml", server.address) as watched,
    ):
        wait_until(lambda: watched.value('up{job="millpond"}') == [1], "a scrape")
        with pytest.raises(HTTPError, match="502"):
            urlopen(f"{server.url}/v2/library/app/manifests/1", timeout=30)
        wait_until(lambda: 0 in watched.value("millpond_upstream_up"), "a scrape of the failure")
        for query in queries():
            watched.value(query)

        def states() -> dict[str, str]:
            [group] = watched.ask("rules")["groups"]
            found = [rule for rule in group["rules"] if rule["health"] == "ok"]
            return {rule["name"]: rule["state"] for rule in found}

        wait_until(lambda: len(states()) == len(rules()), "all rules to be evaluated")
        wait_until(lambda: states()["MillpondUpstreamDown"] == "pending", "the alert")
        assert states()["MillpondDown"] == "inactive"
