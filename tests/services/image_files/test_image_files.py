"""Which kind of file a text is, and plain lists."""

import pytest

from proxy.core.errors import RequestInvalid
from proxy.services.image_files import MAX_BYTES, read
from proxy.services.image_files.results import Build

BUILD = Build("linux/amd64", "linux/amd64")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("images.txt", "nginx\n# all\n  redis:7  # cache\n\nnginx\n", ["nginx", "redis:7"]),
        ("-", "from-scratch/app\n", ["from-scratch/app"]),
        ("-", "FROM alpine:3\n", ["alpine:3"]),
        ("-", "# syntax=a/b\nARG X=1\nFROM alpine:$X\n", ["a/b", "alpine:1"]),
        ("build/Dockerfile.prod", "RUN true\nFROM debian\n", ["debian"]),
        ("app.dockerfile", "FROM debian", ["debian"]),
        ("Containerfile", "FROM debian", ["debian"]),
        ("-", "services:\n  a: {image: nginx}\n", ["nginx"]),
        ("-", '{"kind": "Pod", "spec": {"image": "nginx"}}', ["nginx"]),
        ("empty.yaml", "", []),
        ("empty.txt", "", []),
    ],
)
def test_kinds_of_files(name: str, text: str, expected: list[str]) -> None:
    found = read(text, name, BUILD)
    assert found.problems == []
    assert [image.name for image in found.images] == expected


def test_a_line_with_more_than_an_image_is_a_problem() -> None:
    found = read("nginx\nredis and more\n", "images.txt", BUILD)
    assert [image.name for image in found.images] == ["nginx"]
    assert found.problems == ["images.txt, line 2: more than an image: redis and more"]


def test_files_are_bounded() -> None:
    with pytest.raises(RequestInvalid, match=r"images\.txt: longer than"):
        read("a" * (MAX_BYTES + 1), "images.txt", BUILD)
