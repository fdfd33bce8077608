"""The TLS certificate of the server: a renewed one is served without a restart."""

import asyncio
import ssl
from pathlib import Path
from typing import Final

import structlog

from proxy.core.errors import ConfigError
from proxy.settings import ServerTLS, Settings
from proxy.web.client_certificate import ask_for_certificates

POLL_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class Certificate:
    """The server's TLS context; new connections get the current files' certificate."""

    def __init__(self, tls: ServerTLS, clients_ca: Path | None = None) -> None:
        """Load the files; ``clients_ca`` verifies clients that have a certificate.

        Raises ``ConfigError``.
        """
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if clients_ca is not None:
            ask_for_certificates(self.context, clients_ca)
        self.use(tls)

    def use(self, tls: ServerTLS) -> None:
        """Use these files for new connections. Raises ``ConfigError`` and then changes nothing."""
        try:
            seen = _stamp(tls)
            self._load(tls)
        except OSError as error:
            raise ConfigError(
                f"tls: {tls.cert_file} with {tls.key_file} cannot be used: {error}; "
                "expected a PEM certificate chain and its unencrypted key"
            ) from None
        self._tls, self._seen = tls, seen

    async def watch(self) -> None:
        """Reload the files when they change, until cancelled; an invalid pair is logged."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if (stamp := _stamp(self._tls)) != self._seen:
                    self._load(self._tls)
                    self._seen = stamp
                    log.info("certificate renewed", file=str(self._tls.cert_file))
            except OSError as error:
                log.error("certificate not renewed, still using the old one", error=str(error))

    def _load(self, tls: ServerTLS) -> None:
        """Load the files into a trial context first: a mismatched pair spoils a context."""
        trial = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for context in (trial, self.context):
            context.load_cert_chain(tls.cert_file, tls.key_file, _no_password)


def _stamp(tls: ServerTLS) -> tuple[tuple[int, int], ...]:
    files = (tls.cert_file.stat(), tls.key_file.stat())
    return tuple((file.st_mtime_ns, file.st_ino) for file in files)


def _no_password() -> str:
    """Fail for an encrypted key: without this, OpenSSL prompts on the terminal."""
    raise OSError("the key is encrypted")


def certificate_of(settings: Settings) -> Certificate | None:
    """Return the certificate of a server that speaks TLS. Raises ``ConfigError``."""
    if settings.tls is None:
        return None
    clients = settings.access.client_certificates
    return Certificate(settings.tls, None if clients is None else clients.ca_file)
