"""Credentials from a helper program.

It uses the protocol of docker-credential-helpers (README, "Development"): the server's URL on
standard input, ``{"Username", "Secret"}`` on standard output. ``username`` and ``password``, and
``expires_in`` in seconds, are accepted too.
"""

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.program import Program, read_answer, run
from proxy.upstream.credentials.renewing import Issued

NOT_FOUND = b"credentials not found in native keychain"
"""The output of a helper without a credential for the server (credentials/error.go)."""


async def ask_helper(program: Program, server: str) -> Issued[Credential | None]:
    """Return the credential for a server, None if the program knows none.

    Raises ``CredentialsRejected``.
    """
    output = await run(program, f"{server}\n")
    if output.status != 0 and output.text.strip() == NOT_FOUND:
        return Issued(None)
    document = read_answer(program, output)
    username = document.get("Username", document.get("username"))
    secret = document.get("Secret", document.get("password"))
    life = document.get("expires_in")
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        raise CredentialsRejected(f"{program.name} prints no user name with a password")
    credential = Credential(username, secret)
    return Issued(credential, float(life) if isinstance(life, int | float) else None)
