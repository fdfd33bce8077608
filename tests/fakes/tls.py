"""Certificates for upstreams that speak TLS."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NAMES = ("127.0.0.1", "127.0.0.2", "localhost")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate: trust `authority` (a PEM file), serve with `server`."""

    authority: Path
    server: ssl.SSLContext


def certificate(
    folder: Path, names: tuple[str, ...] = _NAMES, days: tuple[float, float] = (-1 / 24, 1)
) -> Certificate:
    """Make a certificate for `names` (hosts or addresses), with its files in `folder`.

    It is valid between two days from now.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    made = _sign(key, names, days)
    authority, secret = folder / "authority.pem", folder / "key.pem"
    authority.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority, secret)
    return Certificate(authority, server)


def _sign(
    key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], days: tuple[float, float]
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake upstream")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
