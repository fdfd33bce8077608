"""Images in Dockerfiles, in the forms that BuildKit accepts."""

import pytest

from proxy.services.image_files import dockerfile
from proxy.services.image_files.results import Build, FoundReferences

BUILD = Build(machine="linux/amd64", target="linux/arm64")


def read(text: str, build: Build = BUILD) -> FoundReferences:
    return dockerfile.read(text, "Dockerfile", build)


def names(text: str, build: Build = BUILD) -> list[str]:
    found = read(text, build)
    assert found.problems == []
    return [image.name for image in found.images]


def test_every_stage_and_copied_image_is_found_once() -> None:
    text = """\
FROM golang:1.23-alpine AS build
RUN go build ./...
FROM build AS test
FROM node:22 as assets
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /app /app
COPY --from=assets /dist /dist
COPY --chown=1:1 --from=busybox:1.36 /bin/wget /bin/wget
COPY --from=0 /go/bin /go
COPY --from=nginx:1.27 /etc/nginx /etc/nginx
COPY --from=nginx:1.27 /usr/share /usr/share
"""
    assert names(text) == [
        "golang:1.23-alpine",
        "node:22",
        "gcr.io/distroless/static-debian12:nonroot",
        "busybox:1.36",
        "nginx:1.27",
    ]


def test_scratch_and_stages_are_no_images_whatever_their_case() -> None:
    assert names("FROM scratch\nFROM alpine AS Base\nFROM base\nCOPY --from=BASE / /\n") == [
        "alpine"
    ]


def test_a_stage_is_known_only_after_it_begins() -> None:
    assert names("FROM alpine AS debian\nFROM debian\n") == ["alpine"]
    assert names("FROM debian AS debian\n") == ["debian"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("python:${VERSION}", "python:3.12"),
        ("python:$VERSION", "python:3.12"),
        ("python:${VERSION}-${FLAVOUR:-slim}", "python:3.12-slim"),
        ("python:${VERSION}${EMPTY:+-never}", "python:3.12"),
        ("python:${VERSION}${VERSION:+-set}", "python:3.12-set"),
        ("python:${NONE:-${VERSION}}", "python:3.12"),
        ("python:${VERSION%.*}", "python:3"),
        ("python:${FULL#*-}", "python:3.12"),
        ("python:${FULL/python-/v}", "python:v3.12"),
        ("${REGISTRY}python:3", "ghcr.io/acme/python:3"),
        ('"python:${VERSION}"', "python:3.12"),
    ],
)
def test_arguments_before_the_first_stage_have_their_defaults(image: str, expected: str) -> None:
    text = f"""\
ARG VERSION=3.12 EMPTY=
ARG FULL="python-${{VERSION}}"
ARG REGISTRY='ghcr.io/acme/'
FROM {image}
"""
    assert names(text) == [expected]


def test_a_build_argument_beats_the_default() -> None:
    build = Build("linux/amd64", "linux/amd64", arguments={"TAG": "edge"})
    assert names("ARG TAG=stable\nFROM alpine:${TAG}\n", build) == ["alpine:edge"]


def test_arguments_of_a_stage_do_not_reach_from() -> None:
    found = read("FROM alpine\nARG TAG=1\nFROM nginx:${TAG}\n")
    assert [image.name for image in found.images] == ["alpine"]
    assert found.problems == ["Dockerfile, line 3: FROM: TAG has no value"]


def test_an_argument_without_value_is_a_problem_with_its_line() -> None:
    found = read("ARG BASE\n\nFROM ${BASE}\nCOPY --from=redis:7 / /\n")
    assert [image.name for image in found.images] == ["redis:7"]
    assert found.problems == ["Dockerfile, line 3: FROM: BASE has no value"]


def test_platforms_are_those_of_the_build() -> None:
    text = """\
FROM --platform=$BUILDPLATFORM golang:1.23 AS build
FROM --platform=linux/386 alpine:3 AS old
FROM debian:12 AS base-arm64
FROM debian:11 AS base-amd64
FROM base-${TARGETARCH}
"""
    found = read(text)
    assert found.problems == []
    assert {image.name: image.platform for image in found.images} == {
        "golang:1.23": "linux/amd64",
        "alpine:3": "linux/386",
        "debian:12": "linux/arm64",
        "debian:11": "linux/arm64",
    }


def test_continued_lines_comments_and_directives() -> None:
    text = """\
# syntax=docker/dockerfile:1.7
# escape=`
# a comment = not a directive any more
FROM `
  # a comment in between

  python:3.12 `
  AS base
# FROM commented:out
RUN echo `
  FROM not:this
"""
    assert names(text) == ["docker/dockerfile:1.7", "python:3.12"]


def test_the_bodies_of_heredocs_are_no_instructions() -> None:
    text = """\
FROM alpine
RUN <<EOF cat && <<-"END" cat
FROM in:heredoc
EOF
\tFROM in:second
\tEND
COPY <<A <<B /etc/
FROM in:a
A
FROM in:b
B
FROM debian
"""
    assert names(text) == ["alpine", "debian"]


def test_mounts_and_onbuild_instructions() -> None:
    text = """\
FROM alpine
RUN --mount=type=cache,target=/c --mount=type=bind,from=golang:1.23,target=/go true
RUN --network=none --mount=from=ghcr.io/astral-sh/uv:0.5,source=/uv,target=/bin/uv uv sync
ONBUILD COPY --from=composer:2 /usr/bin/composer /bin/
"""
    assert names(text) == ["alpine", "golang:1.23", "ghcr.io/astral-sh/uv:0.5", "composer:2"]


@pytest.mark.parametrize("line", ["FROM", "FROM a b", "FROM a IS b", "FROM ${X", "FROM http://x"])
def test_malformed_lines_are_problems_and_the_rest_is_read(line: str) -> None:
    found = read(f"{line}\nFROM alpine\n")
    assert [image.name for image in found.images] == ["alpine"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("Dockerfile, line 1: FROM: ")
