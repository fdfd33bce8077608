"""The images that the tests pull: one of every kind, the same bytes on every run."""

from dataclasses import dataclass
from pathlib import Path

from tests.parts.images import DOCKER, ELSEWHERE, HERE, OCI, Format, Image, Index
from tests.parts.process import command
from tests.parts.push import Layer, Pusher, Recipe, layer_of, push_image, push_index, random_layer
from tests.parts.registry import Registry

KB, MB = 1000, 1000 * 1000
SECRET = "org/secret"


@dataclass(frozen=True, slots=True)
class Shelf:
    """Every image the tests pull."""

    tiny: Image  # OCI
    app: Image  # docker schema 2, layers of 1 kB to 8 MB
    tool: Image  # a repository four components deep
    multi: Index  # OCI, a layer of its own per platform and one shared
    dlist: Index  # a docker manifest list
    shell: Image  # busybox: it runs, and says `ripples`
    secret: Image  # for users only
    big: Image  # one layer of 200 MB

    @property
    def common(self) -> tuple[Image | Index, ...]:
        """One of every kind that anybody may pull in a moment."""
        return (self.tiny, self.app, self.tool, self.multi, self.dlist)


def busybox() -> Layer:
    """Return a layer with Debian's static busybox, which needs nothing else to run."""
    return layer_of("bin/busybox", Path(command("busybox")).read_bytes(), 0o755)


def push_all(registry: Registry) -> Shelf:
    """Make and push every image."""
    pusher = Pusher(registry)

    def several(form: Format, name: str) -> list[Recipe]:
        shared = random_layer(f"{name}-shared", 200 * KB)
        return [
            Recipe(form, [shared, random_layer(f"{name}-{arch}", 300 * KB)], arch)
            for arch in (ELSEWHERE, HERE)  # ours second: a client has to choose
        ]

    def one(repository: str, tag: str, form: Format, *sizes: int) -> Image:
        layers = [random_layer(f"{repository}-{size}", size) for size in sizes]
        return push_image(pusher, repository, tag, Recipe(form, layers))

    says = ("/bin/busybox", "echo", "ripples")
    return Shelf(
        tiny=one("library/tiny", "latest", OCI, 1 * KB),
        app=one("library/app", "3.12", DOCKER, 1 * KB, 64 * KB, 1 * MB, 8 * MB),
        tool=one("org/team/deep/tool", "v1.0_x", OCI, 30 * KB),
        multi=push_index(pusher, "library/multi", "1.2", several(OCI, "multi")),
        dlist=push_index(pusher, "library/dlist", "stable", several(DOCKER, "dlist")),
        shell=push_image(pusher, "library/shell", "latest", Recipe(OCI, [busybox()], command=says)),
        secret=one(SECRET, "latest", OCI, 5 * KB),
        big=one("library/big", "latest", DOCKER, 200 * MB),
    )
