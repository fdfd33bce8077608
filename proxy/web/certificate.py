"""Keeps HTTPS current: a renewed certificate is served without a restart."""

import asyncio
import ssl
from typing import Final

import structlog

from proxy.errors import ConfigError
from proxy.settings import ServerTLS

POLL_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class Certificate:
    """The server's TLS context; new connections get what the files hold now."""

    def __init__(self, tls: ServerTLS) -> None:
        """Load the files. Raises ``ConfigError``."""
        self._tls = tls
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            self._seen = self._stamp()
            self.context.load_cert_chain(tls.cert_file, tls.key_file, _no_password)
        except OSError as error:
            raise ConfigError(
                f"tls: {tls.cert_file} with {tls.key_file} cannot be used: {error}; "
                "expected a PEM certificate chain and its unencrypted key"
            ) from None

    async def watch(self) -> None:
        """Load the files again whenever they have changed; a broken pair is left alone."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if (stamp := self._stamp()) != self._seen:
                    self._reload()
                    self._seen = stamp
            except OSError as error:
                log.error("certificate not renewed, serving the former", error=str(error))

    def _reload(self) -> None:
        trial = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trial.load_cert_chain(self._tls.cert_file, self._tls.key_file, _no_password)
        self.context.load_cert_chain(self._tls.cert_file, self._tls.key_file, _no_password)
        log.info("certificate renewed", file=str(self._tls.cert_file))

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        files = (self._tls.cert_file.stat(), self._tls.key_file.stat())
        return tuple((file.st_mtime_ns, file.st_ino) for file in files)


def _no_password() -> str:
    """Answer for a key that is encrypted, where OpenSSL would ask on the terminal."""
    raise OSError("the key is encrypted")
