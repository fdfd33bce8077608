"""Client certificates: TLS requests and verifies them, and their names identify the client."""

import ssl
from asyncio import BaseTransport
from pathlib import Path
from typing import Any

from proxy.access.identity import Certificate
from proxy.core.errors import ConfigError


def ask_for_certificates(context: ssl.SSLContext, ca_file: Path) -> None:
    """Verify the certificates of clients that have one. Raises ``ConfigError``.

    Clients without one can connect too: the rules decide about them.
    """
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise ConfigError(
            f"access.client_certificates.ca_file: {ca_file} cannot be used: {error}; "
            "expected PEM certificates of authorities"
        ) from None
    context.verify_mode = ssl.CERT_OPTIONAL


def client_certificate(transport: BaseTransport) -> Certificate | None:
    """Return the names in the certificate of a connection's client, None without one."""
    peer = transport.get_extra_info("peercert")
    return names(peer) if peer else None


def names(peer: dict[str, Any]) -> Certificate:
    """Return the names in the result of ``SSLSocket.getpeercert``."""
    common = [
        value for part in peer.get("subject", ()) for key, value in part if key == "commonName"
    ]
    others: dict[str, list[str]] = {"email": [], "DNS": [], "URI": []}
    for kind, value in peer.get("subjectAltName", ()):
        if kind in others:
            others[kind].append(value)
    return Certificate(
        common[0] if len(common) == 1 else None,
        tuple(others["email"]),
        tuple(others["DNS"]),
        tuple(others["URI"]),
    )
