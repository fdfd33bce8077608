"""Images in Kubernetes objects, as charts and operators write them."""

import pytest

from proxy.core.errors import RequestInvalid
from proxy.services.image_files import read
from proxy.services.image_files.results import Build, FoundReferences

BUILD = Build("linux/amd64", "linux/amd64")

RENDERED = """\
---
# Source: shop/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: shop
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"spec": {"image": "old:1"}}
spec:
  template:
    spec:
      initContainers:
        - {name: wait, image: "busybox:1.36"}
      containers:
        - name: app
          image: "ghcr.io/acme/shop:2.1.0"
          imagePullPolicy: IfNotPresent
          env:
            - {name: RELATED_IMAGE_PROXY, value: "quay.io/acme/proxy:v1"}
            - {name: OTHER, value: "not/an-image:1"}
        - {name: side, image: "registry.k8s.io/pause:3.9"}
      volumes:
        - {name: model, image: {reference: "acme/model:1", pullPolicy: Always}}
---
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: "busybox:1.36"}]}}}}
"""

CUSTOM = """\
apiVersion: v1
kind: List
items:
- apiVersion: monitoring.coreos.com/v1
  kind: Prometheus
  metadata: {name: k8s}
  spec:
    image: quay.io/prometheus/prometheus:v2.54.1
    thanos: {image: "quay.io/thanos/thanos:v0.36.1"}
  status: {image: "quay.io/prometheus/prometheus:v2.0.0"}
- apiVersion: acme.example/v1
  kind: Stack
  spec:
    sidecarImage: acme/sidecar:1
    pullImage: Always
    image: {registry: quay.io, repository: acme/stack, tag: 1.2}
    initImage: {repository: acme/init, digest: "sha256:%s"}
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  spec: {schema: {properties: {image: {type: string, default: "never:1"}}}}
""" % ("ab" * 32)


def names(text: str, name: str = "k8s.yaml") -> list[str]:
    found = read(text, name, BUILD)
    assert found.problems == []
    return [image.name for image in found.images]


def test_a_rendered_chart() -> None:
    assert sorted(names(RENDERED)) == [
        "acme/model:1",
        "busybox:1.36",
        "ghcr.io/acme/shop:2.1.0",
        "quay.io/acme/proxy:v1",
        "registry.k8s.io/pause:3.9",
    ]


def test_standard_input_is_recognised_by_its_content() -> None:
    assert names(RENDERED, "-") == names(RENDERED)


def test_custom_resources_and_lists() -> None:
    assert sorted(names(CUSTOM)) == [
        f"acme/init@sha256:{'ab' * 32}",
        "acme/sidecar:1",
        "quay.io/acme/stack:1.2",
        "quay.io/prometheus/prometheus:v2.54.1",
        "quay.io/thanos/thanos:v0.36.1",
    ]


def test_what_is_not_rendered_is_a_problem() -> None:
    found: FoundReferences = read("kind: Pod\nspec: {image: 'nginx:$(TAG)'}", "pod.yaml", BUILD)
    assert not found.images
    assert found.problems == ["pod.yaml: Pod: no image: 'nginx:$(TAG)'"]


def test_text_that_is_not_yaml_names_the_line() -> None:
    with pytest.raises(RequestInvalid, match=r"k8s\.yaml, line 2: not YAML"):
        read("kind: Pod\n\tspec: 1", "k8s.yaml", BUILD)


def test_aliases_of_aliases_do_not_grow() -> None:
    bomb = "a0: &a0 {image: x/y}\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    assert names(f"kind: Pod\n{bomb}") == ["x/y"]
