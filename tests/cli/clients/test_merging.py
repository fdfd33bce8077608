"""Other settings in a file are preserved, whatever the file contains."""

import json
import tomllib

import pytest
import yaml

from proxy.cli.clients.merging import Format, Unreadable, merge

DAEMON = """\
{
    "log-driver": "journald",
    "registry-mirrors": ["https://other.example"],
    "dns": ["10.0.0.1"]
}
"""
WANTED = json.dumps({"registry-mirrors": ["http://127.0.0.1:5000"]})

CONFIG = """\
# by hand, 2024
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9"   # keep
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"

[debug]
  level = "info"
"""
CONFIG_PATH = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
"""

CONF = """\
unqualified-search-registries = ["docker.io"]  # by hand

[[registry]]
location = "docker.io"
blocked = false
[[registry.mirror]]
location = "mirror.example"
"""
MIRRORS = """\
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "127.0.0.1:5000/docker.io"
insecure = true

[[registry]]
location = "ghcr.io"
[[registry.mirror]]
location = "127.0.0.1:5000/ghcr.io"
"""

REGISTRIES = """\
# by hand
mirrors:
  docker.io:
    endpoint:
      - "https://other.example"   # the old one
configs:
  other.example:
    auth: {username: ann, password: 'secret'}
"""
K3S = 'mirrors:\n  docker.io:\n    endpoint: ["http://127.0.0.1:5000"]\n'


def test_json_keeps_order_indentation_and_values() -> None:
    merged = merge(Format.JSON, DAEMON, WANTED)
    document = json.loads(merged)
    assert list(document) == ["log-driver", "registry-mirrors", "dns"]
    assert document["registry-mirrors"] == ["http://127.0.0.1:5000", "https://other.example"]
    assert merged.startswith('{\n    "log-driver": "journald",\n')
    assert merged.endswith("}\n")


def test_toml_keeps_comments_and_tables() -> None:
    merged = merge(Format.TOML, CONFIG, CONFIG_PATH)
    before, after = tomllib.loads(CONFIG), tomllib.loads(merged)
    cri = after["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri.pop("registry") == {"config_path": "/etc/containerd/certs.d"}
    assert after == before
    assert set(CONFIG.splitlines()) <= set(merged.splitlines())


def test_tables_of_a_list_are_merged_by_their_location() -> None:
    merged = merge(Format.TOML, CONF, MIRRORS)
    hub, ghcr = tomllib.loads(merged)["registry"]
    assert hub["blocked"] is False
    locations = [mirror["location"] for mirror in hub["mirror"]]
    assert locations == ["mirror.example", "127.0.0.1:5000/docker.io"]
    assert ghcr["location"] == "ghcr.io"
    assert "# by hand" in merged


def test_yaml_keeps_comments_and_quotes() -> None:
    merged = merge(Format.YAML, REGISTRIES, K3S)
    document = yaml.safe_load(merged)
    endpoints = document["mirrors"]["docker.io"]["endpoint"]
    assert endpoints == ["http://127.0.0.1:5000", "https://other.example"]
    assert document["configs"] == yaml.safe_load(REGISTRIES)["configs"]
    assert "# by hand" in merged
    assert "# the old one" in merged
    assert "'secret'" in merged


@pytest.mark.parametrize(
    ("format_", "current", "wanted"),
    [
        (Format.JSON, DAEMON, WANTED),
        (Format.TOML, CONFIG, CONFIG_PATH),
        (Format.TOML, CONF, MIRRORS),
        (Format.TOML, "", MIRRORS),
        (Format.YAML, REGISTRIES, K3S),
        (Format.YAML, "# nothing yet\n", K3S),
        (Format.PEM, "old", "new"),
    ],
)
def test_a_second_time_changes_nothing(format_: Format, current: str, wanted: str) -> None:
    merged = merge(format_, current, wanted)
    assert merged != current
    assert merge(format_, merged, wanted) == merged


@pytest.mark.parametrize(
    ("format_", "current", "wanted", "words"),
    [
        (Format.JSON, '{\n  "a": 1,\n}\n', WANTED, ("line 3", "column 1")),
        (Format.JSON, '{"a": 1, "a": 2}', WANTED, ("'a'", "twice")),
        (Format.JSON, "[]", WANTED, ("not a mapping",)),
        (Format.JSON, '{"registry-mirrors": "x"}', WANTED, ("registry-mirrors", "not a list")),
        (Format.TOML, "a = 1\nb = = 2\n", MIRRORS, ("line 2",)),
        (Format.TOML, "registry = 1\n", MIRRORS, ("registry", "not a list")),
        (Format.YAML, "mirrors:\n  - a: [\n", K3S, ("line 3",)),
        (Format.YAML, "mirrors: [docker.io]\n", K3S, ("mirrors", "not a mapping")),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_place(
    format_: Format, current: str, wanted: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(Unreadable) as refusal:
        merge(format_, current, wanted)
    for word in words:
        assert word in str(refusal.value)
