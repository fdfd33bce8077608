"""``millpond access test``, and warnings of ``check`` about rules."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.command import ROOT, refused, run

CONFIG = """
listen: 127.0.0.1:0
storage: {path: TMP/cache}
access:
  networks: {ci: [10.0.0.0/8]}
  groups: {dev: [ann]}
  htpasswd_file: TMP/htpasswd
  rules:
    - {deny: pull, images: ["docker.io/*/miner*"], because: "SEC-12"}
    - {allow: pull, images: ["ghcr.io/acme/**"], to: ["group:dev", "network:ci", "user:ci:acme/*"]}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "htpasswd").write_text("")
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.replace("TMP", str(tmp_path)))
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("ann", "ghcr.io/acme/app"), 2),
        (("ci:acme/app", "ghcr.io/acme/team/app:1.2"), 2),
        (("bob", "ghcr.io/acme/app", "--group", "dev"), 2),
        (("-", "ghcr.io/acme/app", "--address", "10.1.2.3"), 2),
        (("bob", "ghcr.io/acme/app"), None),
        (("-", "ghcr.io/acme/app"), None),
        (("-", "ghcr.io/acme/app", "--address", "192.0.2.1"), None),
        (("ann", "nginx"), None),
        (("ann", "bitnami/miner"), 1),
    ],
)
def test_the_rule_that_decides_is_named(
    config: str, arguments: tuple[str, ...], rule: int | None
) -> None:
    done = run("access", "test", *arguments, "--json", "--config", config)
    found = json.loads(done.stdout)
    assert (found["rule"], found["allowed"]) == (rule, rule == 2)
    assert found["user"] == (None if arguments[0] == "-" else arguments[0])
    assert done.returncode == (0 if rule == 2 else 1)
    assert found["because"] == ("SEC-12" if rule == 1 else None)


def test_people_get_a_table(config: str) -> None:
    done = run("access", "test", "ann", "bitnami/miner", "--config", config)
    head, line = done.stdout.splitlines()
    assert head.split() == ["repository", "decision", "rule", "text", "because"]
    for word in ("docker.io/bitnami/miner", "denied", "deny pull docker.io/*/miner*", "SEC-12"):
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ann", "Not a name"), "not a repository name"),
        (("ann", "other.example/app"), "not a configured upstream"),
        (("ann", "sha256:" + "1" * 64), "rules are about repositories"),
        (("ann", "nginx", "--address", "ten"), "--address"),
    ],
)
def test_what_cannot_be_decided_is_an_error(
    config: str, arguments: tuple[str, ...], word: str
) -> None:
    refused(run("access", "test", *arguments, "--config", config), word)


def test_check_warns_and_succeeds(config: str) -> None:
    text = Path(config).read_text()
    Path(config).write_text(
        text.replace("ghcr.io/acme", "docker.io/acme").replace('"network:ci", ', "")
    )
    done = run("check", "--config", config)
    assert done.returncode == 0
    assert "warning: access.rules: rule 2: no dockerd" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("network:ci", "network:lab", "rule 2: network:lab is not among access.networks"),
        ("miner*", "miner*:1", "rule 1: rules are about repositories"),
        (
            "because",
            "becaus",
            "config.yaml:9: access.rules.0.becaus: no such setting; did you mean",
        ),
        ('"group:dev"', '"dev"', "config.yaml:10: access.rules.1: to: 'dev'"),
    ],
)
def test_check_names_the_rule_that_is_wrong(config: str, old: str, new: str, word: str) -> None:
    Path(config).write_text(Path(config).read_text().replace(old, new))
    refused(run("check", "--config", config), word)


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "access.md").read_text().partition("\n## Rules\n")[2]
    found = re.search(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found
    file = tmp_path / "config.yaml"
    file.write_text(found[1])
    lines = re.findall(r"^    millpond (access test .*?) +# (.*)$", page, re.MULTILINE)
    assert len(lines) == 4
    for words, expected in lines:
        done = json.loads(run(*shlex.split(words), "--json", "--config", str(file)).stdout)
        rule = "" if done["rule"] is None else f", rule {done['rule']}"
        assert ("allowed" if done["allowed"] else "denied") + rule == expected
