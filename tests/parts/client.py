"""What every real client has in common, so that one test can be put to all of them."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

from tests.parts.process import command


class PullError(AssertionError):
    """A client said no; its own words are the message."""


class Client(Protocol):
    """A real client that sees docker.io through one mirror and keeps its images in a temp root."""

    name: str

    def pull(self, reference: str) -> str:
        """Pull `library/tiny:latest` or `library/tiny@sha256:…`; return the digest it now holds.

        For a multi-platform image that is the index's or this platform's, as the client reports.
        Raises PullError with what the client wrote.
        """
        ...

    def forget(self) -> None:
        """Drop every image and all content, so that the next pull is a real one."""
        ...


class LoginClient(Client, Protocol):
    """A client that also logs in to registries and pulls by path."""

    def log_in(self, registry: str, user: str, password: str) -> None:
        """Log in to a registry, a host:port. Raises PullError if the client says that it failed."""
        ...

    def log_out(self) -> None:
        """Forget every login."""
        ...

    def pull_by_path(self, reference: str) -> str:
        """Pull `127.0.0.1:5000/library/tiny:latest` from there; return its digest, as `pull`."""
        ...


def run(argv: Sequence[str], env: Mapping[str, str], timeout: float = 120, given: str = "") -> str:
    """Run a client's command; return its stdout, or raise PullError with its stderr.

    `given` is its standard input.
    """
    try:
        done = subprocess.run(
            [command(argv[0]), *argv[1:]],
            env=dict(env),
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as slow:
        raise PullError(f"{argv}: no end after {timeout} s: {slow.stderr!r}") from slow
    if done.returncode:
        raise PullError(f"{argv} → {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
