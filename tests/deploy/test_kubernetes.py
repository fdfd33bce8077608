"""The manifests and the chart: schemas, and consistency of their objects."""

import copy
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.core.units import parse_seconds
from proxy.services import image_files
from proxy.services.image_files.results import Build
from tests.deploy.cluster import (
    CHART,
    DEPLOY,
    EXAMPLES,
    Object,
    containers,
    fault,
    kind,
    kustomized,
    selected,
    templated,
    workloads,
)
from tests.parts import helm
from tests.parts.client import PullError

SERVICE_MONITOR = DEPLOY / "kubernetes" / "fleet" / "service-monitor.yaml"
SETS = ["kustomize fleet", "kustomize node", "helm", *(f"helm {each.name}" for each in EXAMPLES)]


@pytest.fixture(scope="module", params=SETS)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tool, _, name = request.param.partition(" ")
    if tool == "kustomize":
        made = kustomized(name, tmp_path_factory.mktemp("kubernetes"))
        return [*made, yaml.safe_load(SERVICE_MONITOR.read_text())] if name == "fleet" else made
    return templated(DEPLOY / "helm" / "examples" / name if name else None)


def millpond(objects: list[Object]) -> Object:
    """The workload that runs Millpond."""
    [found] = [each for each in workloads(objects) if each["metadata"]["name"] == "millpond"]
    return found


def config(objects: list[Object]) -> dict[str, Any]:
    """The configuration that the pods of Millpond mount."""
    pod = millpond(objects)["spec"]["template"]["spec"]
    [volume] = [each for each in pod["volumes"] if each["name"] == "config"]
    [found] = [
        each
        for each in kind(objects, "ConfigMap")
        if each["metadata"]["name"] == volume["configMap"]["name"]
    ]
    read: dict[str, Any] = yaml.safe_load(found["data"]["config.yaml"])
    return read


def test_the_schemas_accept_every_object(objects: list[Object]) -> None:
    assert len(objects) >= 3
    assert {each["metadata"]["name"]: fault(each) for each in objects if fault(each)} == {}


def test_a_fault_is_found(objects: list[Object]) -> None:
    for each in objects:
        wrong = copy.deepcopy(each)
        if "spec" in wrong:
            wrong["spec"]["nonsense"] = 1
        else:
            wrong["data"] = 5
        assert fault(wrong), each["kind"]


def test_pods_have_few_rights(objects: list[Object]) -> None:
    for workload in workloads(objects):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for each in containers(workload):
            rights = each["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"]["drop"] == ["ALL"]
            assert each["resources"]["limits"]["memory"]
            assert each["resources"]["requests"].keys() >= {"cpu", "memory"}
        for each in pod["containers"]:
            assert "add" not in each["securityContext"]["capabilities"]
            assert each["livenessProbe"]
            assert each["readinessProbe"]


def test_probes_ask_what_millpond_serves(objects: list[Object]) -> None:
    [container] = millpond(objects)["spec"]["template"]["spec"]["containers"]
    asked = {name: container[name]["httpGet"] for name in container if name.endswith("Probe")}
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startupProbe": "/-/healthz",
        "livenessProbe": "/-/healthz",
        "readinessProbe": "/-/readyz",
    }
    scheme = "HTTPS" if "tls" in config(objects) else "HTTP"
    assert {probe.get("scheme", "HTTP") for probe in asked.values()} == {scheme}


def test_the_port_is_the_one_that_millpond_listens_on(objects: list[Object]) -> None:
    [container] = millpond(objects)["spec"]["template"]["spec"]["containers"]
    host, _, port = config(objects)["listen"].rpartition(":")
    assert host == "0.0.0.0"
    assert [each["containerPort"] for each in container["ports"]] == [int(port)]


def test_a_pod_may_stop_for_as_long_as_millpond_needs(objects: list[Object]) -> None:
    settings = config(objects)
    needed = parse_seconds(settings.get("shutdown_delay", "0s")) + parse_seconds(
        settings["shutdown_grace"]
    )
    assert millpond(objects)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > needed


def test_what_is_mounted_is_what_the_settings_name(objects: list[Object]) -> None:
    pod = millpond(objects)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert mounts.keys() <= volumes.keys()
    settings = config(objects)
    assert mounts["cache"] == settings["storage"]["path"]
    assert {"name": "MILLPOND_CONFIG", "value": f"{mounts['config']}/config.yaml"} in container[
        "env"
    ]
    files = [value for value in texts(settings) if value.startswith("/run/secrets/")]
    assert all(str(Path(file).parent) == mounts.get("secrets") for file in files)


def test_variables_in_settings_are_set(objects: list[Object]) -> None:
    [container] = millpond(objects)["spec"]["template"]["spec"]["containers"]
    env = {each["name"] for each in container["env"]}
    for value in texts(config(objects)):
        _, found, rest = value.partition("${")
        assert not found or rest.partition("}")[0] in env


def test_an_empty_dir_is_larger_than_the_cache(objects: list[Object]) -> None:
    pod = millpond(objects)["spec"]["template"]["spec"]
    [cache] = [each for each in pod["volumes"] if each["name"] == "cache"]
    if "emptyDir" in cache:
        limit = int(cache["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert limit > int(config(objects)["storage"]["max_size"].removesuffix("GiB"))


def test_keys_of_secrets_exist(objects: list[Object]) -> None:
    secrets = {each["metadata"]["name"]: each["data"].keys() for each in kind(objects, "Secret")}
    for workload in workloads(objects):
        for container in containers(workload):
            for variable in container.get("env", []):
                if (ref := variable.get("valueFrom", {}).get("secretKeyRef")) and secrets:
                    assert ref["key"] in secrets[ref["name"]]
    if secrets:
        [keys] = secrets.values()
        files = [Path(value) for value in texts(config(objects)) if "/run/secrets/" in value]
        assert {file.name for file in files} <= keys


def test_selectors_select_pods(objects: list[Object]) -> None:
    labels = [each["spec"]["selector"] for each in kind(objects, "Service")]
    labels += [each["spec"]["selector"]["matchLabels"] for each in workloads(objects)]
    labels += [
        each["spec"]["selector"]["matchLabels"] for each in kind(objects, "PodDisruptionBudget")
    ]
    labels += [
        each["spec"]["podSelector"]["matchLabels"] for each in kind(objects, "NetworkPolicy")
    ]
    assert labels
    assert all(len(selected(objects, each)) == 1 for each in labels)


def test_service_monitors_find_the_service_and_its_port(objects: list[Object]) -> None:
    for monitor in kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        [service] = [
            each
            for each in kind(objects, "Service")
            if wanted <= each["metadata"]["labels"].items()
        ]
        ports = {each["name"] for each in service["spec"]["ports"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= ports
        assert {each["path"] for each in monitor["spec"]["endpoints"]} == {"/metrics"}


def test_every_pod_has_a_network_policy(objects: list[Object]) -> None:
    covered = [
        workload["metadata"]["name"]
        for policy in kind(objects, "NetworkPolicy")
        for workload in selected(objects, policy["spec"]["podSelector"]["matchLabels"])
    ]
    assert sorted(covered) == sorted(each["metadata"]["name"] for each in workloads(objects))


def test_replicas_may_reach_each_other_and_redis(objects: list[Object]) -> None:
    if "fleet" not in config(objects):
        return
    [policy] = [
        each for each in kind(objects, "NetworkPolicy") if each["metadata"]["name"] == "millpond"
    ]
    own = policy["spec"]["podSelector"]
    rules = policy["spec"]["egress"]
    assert any({"podSelector": own} in rule["to"] for rule in rules)
    assert any({"podSelector": own} in rule["from"] for rule in policy["spec"]["ingress"])
    assert any(port["port"] == 6379 for rule in rules for port in rule["ports"])


# --- the chart ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [None, *EXAMPLES], ids=lambda path: path and path.name)
def test_helm_finds_nothing_wrong(values: Path | None) -> None:
    with helm.running() as program:
        said = program.lint(CHART, *(("--values", str(values)) if values else ()))
    assert "0 chart(s) failed" in said


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("replica=3", "replica"),
        ("kind=StatefulSet", "kind"),
        ("cache.hostPath=relative", "hostPath"),
        ("containerd.certsPath=/etc/containerd/certs.d", "DaemonSet"),
    ],
)
def test_values_that_make_no_sense_are_refused(setting: str, complaint: str) -> None:
    with pytest.raises(PullError, match=complaint):
        templated(None, "--set", setting)


@pytest.mark.parametrize(
    ("setting", "absent"),
    [
        ("networkPolicy.enabled=false", "NetworkPolicy"),
        ("podDisruptionBudget.enabled=false", "PodDisruptionBudget"),
        ("serviceMonitor.enabled=false", "ServiceMonitor"),
    ],
)
def test_parts_can_be_left_out(setting: str, absent: str) -> None:
    fleet = DEPLOY / "helm" / "examples" / "fleet.yaml"
    assert kind(templated(fleet), absent)
    assert not kind(templated(fleet, "--set", setting), absent)


def test_a_changed_configuration_replaces_the_pods() -> None:
    def annotations(*options: str) -> Any:
        return millpond(templated(None, *options))["spec"]["template"]["metadata"]["annotations"]

    assert annotations() == annotations()
    assert annotations() != annotations("--set", "config.log.level=debug")


def test_warming_finds_the_images_of_what_helm_and_kustomize_render(objects: list[Object]) -> None:
    text = yaml.safe_dump_all(objects)
    found = image_files.read(text, "-", Build("linux/amd64", "linux/amd64"))
    named = {one["image"] for each in workloads(objects) for one in containers(each)}
    assert found.problems == []
    assert {image.name for image in found.images} == named


def test_the_node_is_asked_at_the_port_that_it_has() -> None:
    node = templated(DEPLOY / "helm" / "examples" / "node.yaml", "--set", "service.port=5055")
    [config] = kind(node, "ConfigMap")
    [container] = millpond(node)["spec"]["template"]["spec"]["containers"]
    assert '"http://127.0.0.1:5055"' in config["data"]["hosts.toml"]
    [port] = container["ports"]
    assert (port["hostIP"], port["hostPort"], port["containerPort"]) == ("127.0.0.1", 5055, 5000)


def test_containerd_asks_the_node() -> None:
    [config] = kind(templated(DEPLOY / "helm" / "examples" / "node.yaml"), "ConfigMap")
    hosts = tomllib.loads((DEPLOY / "kubernetes" / "node" / "hosts.toml").read_text())
    assert tomllib.loads(config["data"]["hosts.toml"]) == hosts
    assert hosts == {"host": {"http://127.0.0.1:5000": {"capabilities": ["pull", "resolve"]}}}


def texts(value: object) -> list[str]:
    """Every text in a configuration."""
    match value:
        case dict():
            return [text for inner in value.values() for text in texts(inner)]
        case list():
            return [text for inner in value for text in texts(inner)]
        case str():
            return [value]
    return []


def test_texts_are_found() -> None:
    assert texts({"a": ["b", {"c": "d"}], "e": math.pi}) == ["b", "d"]
