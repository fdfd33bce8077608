"""Calls a cloud's library in a thread, with a time limit, if it is installed."""

import asyncio
import importlib
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from proxy.core.errors import ConfigError, CredentialsRejected

SECONDS: Final = 30.0
"""Time limit of a call; libraries try several addresses, each with a shorter limit."""

EXTRAS: Final = {
    "aws": "botocore.session",
    "google": "google.auth.transport.requests",
    "azure": "azure.identity",
}
"""Names of the extras of ``pyproject.toml``, and a module of the library that each installs."""

Result = TypeVar("Result")


def load(extra: str, module: str) -> Any:
    """Return a module of a cloud's library. Raises ``ConfigError`` if it is not installed.

    What the library logs stays out of our log: it may quote an answer.
    """
    logging.getLogger(module.partition(".")[0]).setLevel(logging.CRITICAL + 1)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"the library for it is not installed; install it with: pip install 'millpond[{extra}]'"
        ) from None


async def call(cloud: str, work: Callable[[], Result]) -> Result:
    """Return the result of ``work``, from a thread. Raises ``CredentialsRejected``.

    The libraries have no common class of errors. Their messages stay out of ours, because they may
    quote an answer; the class says what is wrong.
    """
    try:
        async with asyncio.timeout(SECONDS):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise CredentialsRejected(f"{cloud} returns no credentials in time") from None
    except CredentialsRejected:
        raise
    except Exception as error:
        raise CredentialsRejected(f"{cloud} returns no credentials: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return the class of an error, and the code that AWS gives."""
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, dict) else None
    code = details.get("Code") if isinstance(details, dict) else None
    is_code = isinstance(code, str) and code.isalnum() and len(code) < 64
    return f"{type(error).__name__} {code}" if is_code else type(error).__name__
