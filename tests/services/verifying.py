"""An image whose content is damaged in several ways, for tests of verification."""

from tests.fakes import content

IMAGE = content.image(1, layers=(5000, 300_000))
LAYER = IMAGE.layers[1]
DATA = IMAGE.blobs[LAYER]
NAME = "docker.io/library/app:latest"


def altered(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "altered": altered,
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"x",
    "empty": lambda _: b"",
}
