"""Millpond: a pull-through caching proxy registry for container images.

The package is named ``proxy``; the distribution and the command are ``millpond``.
``proxy/README.md`` tells a request's story and maps the rooms.
"""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("millpond")
