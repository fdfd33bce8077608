"""A real Prometheus on a loopback port, with rules, that scrapes one target every second."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.parts.process import Daemon, command, free_port, hermetic, listens, workdir


class Prometheus:
    """A running Prometheus."""

    def __init__(self, root: Path, rules: Path, target: str) -> None:
        self.port = free_port()
        job = {"job_name": "millpond", "static_configs": [{"targets": [target]}]}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [job],
        }
        file = root / "prometheus.json"
        file.write_text(json.dumps(config))  # JSON is YAML
        argv = [command("prometheus"), f"--config.file={file}"]
        argv += [f"--storage.tsdb.path={root / 'data'}", "--log.level=warn"]
        argv += [f"--web.listen-address=127.0.0.1:{self.port}"]
        self.daemon = Daemon(argv, hermetic(root), root / "prometheus.log")

    def is_ready(self) -> bool:
        """Return True if it answers queries."""
        if not listens(self.port):
            return False
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=30):
                return True
        except HTTPError:
            return False

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(query)}"
        with urlopen(url, timeout=30) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression: str) -> list[float]:
        """Return the values of an expression now. Fails if Prometheus does not understand it."""
        found = self.ask("query", query=expression)["result"]
        return [float(one["value"][1]) for one in found]


@contextmanager
def running(rules: Path, target: str) -> Iterator[Prometheus]:
    """Give a Prometheus that scrapes ``target``, HOST:PORT."""
    with workdir("prometheus") as root:
        prometheus = Prometheus(root, rules, target)
        prometheus.daemon.start(prometheus.is_ready)
        try:
            yield prometheus
        finally:
            prometheus.daemon.stop()
