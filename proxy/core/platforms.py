"""Names of platforms, as ``linux/arm64/v8`` (image-spec ``image-index.md``, "platform")."""

import platform as machine
import re
from typing import Final

_PLATFORM: Final = re.compile(r"[a-z0-9]+/[a-z0-9]+(/[a-z0-9.]+)?")
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i686": "386",
}
"""Linux's names of machines, and those of images (Go's GOARCH)."""


def is_platform(text: str) -> bool:
    """Return True if a text names a platform."""
    return _PLATFORM.fullmatch(text) is not None


def own_platform() -> str:
    """Return this machine's platform, as ``linux/amd64``."""
    name = machine.machine()
    return f"linux/{_ARCHITECTURES.get(name, name)}"


def platform_name(entry: object) -> str:
    """Return the name of a descriptor's ``platform`` in its usual form, ``any`` if it has none."""
    if not isinstance(entry, dict):
        return "any"
    parts = [str(entry.get(key) or "") for key in ("os", "architecture", "variant")]
    return usual_name("/".join(filter(None, parts)))


def usual_name(platform: str) -> str:
    """Return a platform as containerd normalises it: arm64 is v8 anyway."""
    return platform.removesuffix("/v8") if platform.endswith("/arm64/v8") else platform
