"""Millpond: a pull-through caching proxy registry for container images.

The package is named ``proxy``; the distribution and the command are ``millpond``.
``proxy/README.md`` describes the path of a request and all packages.
"""

VERSION: str


def __getattr__(name: str) -> str:
    """Return ``VERSION``, which is read when it is first needed: that takes 20 ms."""
    if name == "VERSION":
        from importlib.metadata import version  # noqa: PLC0415 - see above

        return version("millpond")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
