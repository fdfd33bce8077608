"""Images in Compose files."""

from pathlib import Path

import pytest

from proxy.core.errors import RequestInvalid
from proxy.services.image_files import read
from proxy.services.image_files.results import Build, FoundReference, FoundReferences

STACK = """\
name: shop
x-logging: &logging
  driver: json-file
services:
  web:
    image: nginx:${NGINX_TAG:-1.27-alpine}
    logging: *logging
    ports: ["80:80"]
  db:
    image: "postgres:16@sha256:0123456789012345678901234567890123456789012345678901234567890123"
    platform: linux/amd64
  worker:
    build:
      context: ./worker
      args: {PYTHON: "3.12"}
    image: shop/worker:dev
  tools:
    profiles: [debug]
    image: ghcr.io/acme/tools
  local:
    image: shop/local
    pull_policy: never
  data:
    image: busybox
    volumes:
      - {type: image, source: "acme/model:7", target: /model}
      - ./here:/there
"""


def read_at(folder: Path | None, text: str, **variables: str) -> FoundReferences:
    build = Build("linux/amd64", "linux/amd64", variables=variables, folder=folder)
    return read(text, "compose.yaml", build)


def names(found: FoundReferences) -> list[str]:
    assert found.problems == []
    return [image.name for image in found.images]


def test_services_builds_and_volumes(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "Dockerfile").write_text(
        "ARG PYTHON=3.9\nFROM python:${PYTHON}-slim\nCOPY --from=ghcr.io/astral-sh/uv /uv /bin/\n"
    )
    found = read_at(tmp_path, STACK)
    assert names(found) == [
        "nginx:1.27-alpine",
        "postgres:16@sha256:" + "0123456789" * 6 + "0123",
        "python:3.12-slim",
        "ghcr.io/astral-sh/uv",
        "ghcr.io/acme/tools",
        "acme/model:7",
        "busybox",
    ]
    assert {image.platform for image in found.images if image.name.startswith("postgres")} == {
        "linux/amd64"
    }


def test_variables_come_from_the_environment_then_from_dot_env(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('# tags\nNGINX_TAG="1.25"\nexport REDIS=7\n')
    text = "services: {a: {image: 'nginx:${NGINX_TAG}'}, b: {image: 'redis:$REDIS'}}"
    assert names(read_at(tmp_path, text)) == ["nginx:1.25", "redis:7"]
    assert names(read_at(tmp_path, text, NGINX_TAG="1.26")) == ["nginx:1.26", "redis:7"]


def test_a_variable_without_value_is_a_problem_of_its_service(tmp_path: Path) -> None:
    text = """\
services:
  a: {image: "nginx:${MISSING}"}
  b: {image: "redis:${TAG:?set TAG to a release}"}
  c: {image: "busybox"}
"""
    found = read_at(tmp_path, text)
    assert list(found.images) == [FoundReference("busybox")]
    assert found.problems == [
        "compose.yaml: service a: MISSING has no value",
        "compose.yaml: service b: TAG: set TAG to a release",
    ]


def test_services_extend_others_and_files_include_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "common.yml").write_text(
        "services:\n  app: {image: acme/app:1, platform: linux/arm64}\n  own: {extends: app}\n"
    )
    (tmp_path / "other.yml").write_text("services: {cache: {image: 'valkey/valkey:8'}}")
    text = """\
include: [other.yml]
services:
  one: {extends: {file: base/common.yml, service: own}}
  two: {extends: {file: base/common.yml, service: app}, image: acme/app:2}
"""
    assert list(read_at(tmp_path, text).images) == [
        FoundReference("valkey/valkey:8"),
        FoundReference("acme/app:1", "linux/arm64"),
        FoundReference("acme/app:2", "linux/arm64"),
    ]


def test_builds_inline_and_from_image_contexts() -> None:
    text = """\
services:
  a:
    build:
      dockerfile_inline: |
        FROM alpine:3.20
        COPY --from=tools /t /t
      additional_contexts: {tools: "docker-image://acme/tools:1"}
"""
    found = read_at(None, text)
    assert "acme/tools:1" in [image.name for image in found.images]
    assert "alpine:3.20" in [image.name for image in found.images]


def test_files_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    text = """\
include: [missing.yml]
services:
  a: {build: "https://github.com/acme/app.git"}
  b: {build: ./gone}
  c: {image: busybox}
"""
    found = read_at(tmp_path, text)
    assert list(found.images) == [FoundReference("busybox")]
    assert found.problems == [
        "compose.yaml: missing.yml: cannot be read: No such file or directory",
        "compose.yaml: https://github.com/acme/app.git: is not read here",
        "compose.yaml: gone/Dockerfile: cannot be read: No such file or directory",
    ]


def test_a_service_that_extends_itself_ends(tmp_path: Path) -> None:
    found = read_at(tmp_path, "services: {a: {extends: b}, b: {extends: a}}")
    assert len(found.problems) == 2
    assert found.problems[0] == "compose.yaml: service a: extends itself"


def test_files_that_include_each_other_end(tmp_path: Path) -> None:
    text = "include: [compose.yaml]\nservices: {a: {image: busybox}}"
    (tmp_path / "compose.yaml").write_text(text)
    with pytest.raises(RequestInvalid, match="more than 50 files"):
        read_at(tmp_path, text)
