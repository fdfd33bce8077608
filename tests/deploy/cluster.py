"""The objects of `deploy/kubernetes` and of the chart, and what the schemas say of them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.parts import helm
from tests.parts.client import run
from tests.parts.issuer import NODE
from tests.parts.process import hermetic

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "millpond"
EXAMPLES = sorted((DEPLOY / "helm" / "examples").glob("*.yaml"))

Object = dict[str, Any]

OLDEST, NEWEST = "1.27", "1.37"
"""The versions of Kubernetes that the manifests are for."""

_MODELS = helm.TOOLS / "node_modules" / "@kubernetes-models" / "prometheus-operator"


def kustomized(name: str, root: Path) -> list[Object]:
    """Return the objects of `deploy/kubernetes/<name>`, with the example's secrets."""
    copy = root / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", copy)
    shutil.copy(copy / name / "secret.env.example", copy / name / "secret.env")
    assert helm.KUBECTL.is_file(), "kubectl is missing: run make parts"
    made = run([str(helm.KUBECTL), "kustomize", str(copy / name)], hermetic(root))
    return list(yaml.safe_load_all(made))


def templated(values: Path | None, *options: str) -> list[Object]:
    """Return the objects that the chart makes of a file of values."""
    files = ("--values", str(values)) if values else ()
    with helm.running() as program:
        made = program.template(CHART, *files, *options)
    return [each for each in yaml.safe_load_all(made) if each]


def fault(document: Object) -> str:
    """Return the first thing that the schemas forbid in an object, or ''."""
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        return _service_monitor_fault(document)
    for version in (OLDEST, NEWEST):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return f"{version}: {'.'.join(map(str, error.path))}: {error.message}"
    return ""


def kind(objects: list[Object], name: str) -> list[Object]:
    """Return the objects of a kind."""
    return [each for each in objects if each["kind"] == name]


def workloads(objects: list[Object]) -> list[Object]:
    """Return what has pods."""
    return kind(objects, "Deployment") + kind(objects, "DaemonSet")


def containers(workload: Object) -> list[Object]:
    """Return the containers of its pods, those of the start included."""
    pod = workload["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def selected(objects: list[Object], labels: dict[str, str]) -> list[Object]:
    """Return the workloads whose pods have all these labels."""
    return [
        each
        for each in workloads(objects)
        if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]


def _service_monitor_fault(document: Object) -> str:
    script = helm.TOOLS / "service_monitor.mjs"
    said = run([str(NODE), str(script)], hermetic(helm.TOOLS), given=json.dumps(document))
    for wrong in json.loads(said):
        return f"{wrong['instancePath']}: {wrong['keyword']} {wrong['params']}"
    # The package's validator accepts fields that it does not know; its types list all that exist.
    types = "".join(file.read_text() for file in _MODELS.glob("monitoring.coreos.com/v1/*.d.ts"))
    known = {"matchLabels", *re.findall(r'^ *"(\w+)"\??:', types, re.MULTILINE)}
    unknown = sorted(set(_fields(document["spec"])) - known)
    return f"no such field: {unknown}" if unknown else ""


def _fields(value: object) -> Iterator[str]:
    match value:
        case dict():
            for name, inner in value.items():
                yield name
                if name != "matchLabels":
                    yield from _fields(inner)
        case list():
            for each in value:
                yield from _fields(each)
