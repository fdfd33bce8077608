"""A token server that Debian's docker-registry trusts, with a memory of who asked for what.

Follows https://distribution.github.io/distribution/spec/auth/token/ and …/auth/jwt/.
"""

import base64
import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.parts.process import free_port


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request as it arrived: `user` is None for the anonymous, `at` is Unix time."""

    user: str | None
    scopes: tuple[str, ...]
    status: int
    at: float


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what: everybody pulls what is not private, one user pushes."""

    users: Mapping[str, str]  # name → password
    private: frozenset[str] = frozenset()  # repositories only users may pull
    pusher: str = "pusher"

    def knows(self, user: str, password: str) -> bool:
        """Tell whether these credentials are right."""
        return self.users.get(user) == password

    def grant(self, user: str | None, scope: str) -> dict[str, object] | None:
        """Return the `access` entry for `repository:<name>:<actions>`; None grants nothing."""
        kind, _, rest = scope.partition(":")
        name, _, wanted = rest.rpartition(":")
        allowed = set()
        if kind == "repository" and (user or name not in self.private):
            allowed.add("pull")
        if kind == "repository" and user == self.pusher:
            allowed |= {"push", "delete"}
        actions = sorted(allowed & set(wanted.split(",")))
        return {"type": kind, "name": name, "actions": actions} if actions else None


class Signer:
    """A fresh key with a self-signed certificate, and the tokens it signs."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests' token server")])
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder(issuer_name=name, subject_name=name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def pem(self) -> bytes:
        """Return the certificate for the registry's `rootcertbundle`."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, claims: Mapping[str, object]) -> str:
        """Return a JWT that carries its certificate in `x5c`."""
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        chain = [base64.b64encode(der).decode()]
        return jwt.encode(dict(claims), self._key, algorithm="ES256", headers={"x5c": chain})


class TokenServer:
    """Serves `GET realm?service=…&scope=…` on a port it keeps over stop() and start()."""

    service = "tests.registry"
    issuer = "tests.issuer"

    def __init__(self, root: Path, access: Access, lifetime: int = 300) -> None:
        self.access = access
        self.lifetime = lifetime  # seconds; said as `expires_in` and signed as `exp`
        self.port = free_port()
        self.realm = f"http://127.0.0.1:{self.port}/token"
        self._signer = Signer()
        self.bundle = root / "token-root.pem"
        self.bundle.write_bytes(self._signer.pem())
        self._requests: list[TokenRequest] = []
        self._server: ThreadingHTTPServer | None = None

    def requests(self) -> list[TokenRequest]:
        """Return every request so far."""
        return list(self._requests)

    def mark(self) -> int:
        """Return a place in the list of requests, for since()."""
        return len(self._requests)

    def since(self, mark: int) -> list[TokenRequest]:
        """Return the requests that arrived after mark()."""
        return self._requests[mark:]

    def issue(self, user: str | None, scopes: Sequence[str]) -> str:
        """Return a token for what `user` may do of what the scopes ask."""
        grants = [self.access.grant(user, scope) for scope in scopes]
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": user or "",
            "aud": self.service,
            "iat": now,
            "nbf": now - 5,
            "exp": now + self.lifetime,
            "jti": secrets.token_hex(8),
            "access": [grant for grant in grants if grant],
        }
        return self._signer.sign(claims)

    def answer(self, query: str, authorization: str | None) -> tuple[int, dict[str, object]]:
        """Return status and JSON for one request, and remember it."""
        asked = parse_qs(query)
        scopes = tuple(s for line in asked.get("scope", []) for s in line.split())
        user: str | None = None
        status = 200 if asked.get("service") == [self.service] else 400
        if authorization is not None:
            scheme, _, encoded = authorization.partition(" ")
            user, _, password = base64.b64decode(encoded).decode().partition(":")
            if scheme.lower() != "basic" or not self.access.knows(user, password):
                status = 401
        self._requests.append(TokenRequest(user, scopes, status, time.time()))
        if status != 200:
            return status, {"errors": [{"code": "UNAUTHORIZED", "message": f"no: {query}"}]}
        issued = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = self.issue(user, scopes)
        return 200, {"token": token, "expires_in": self.lifetime, "issued_at": issued}

    def start(self) -> None:
        """Listen; a thread of its own answers."""
        assert self._server is None, "the token server already runs"
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                authorization = self.headers.get("Authorization")
                status, said = tokens.answer(url.query, authorization)
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Stay silent: requests() is the log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="token-server", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop listening; connections are refused from here on."""
        assert self._server, "the token server does not run"
        self._server.shutdown()
        self._server.server_close()
        self._server = None
