"""Asks the Millpond of this container whether it is well: exit status 0 is yes, 1 is no.

Looks where ``MILLPOND_LISTEN`` says. HTTPS first: Millpond closes a TLS hello on the plain port
quietly, while plain HTTP on the TLS port would be an error in its log every time.
"""

import os
import ssl
import sys
from http.client import HTTPException
from urllib.request import HTTPSHandler, ProxyHandler, build_opener


def main() -> str | None:
    """Return why Millpond is not well, or None."""
    host, _, port = os.environ.get("MILLPOND_LISTEN", "127.0.0.1:5000").rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - to be avoided
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
    failures = []
    for scheme in ("https", "http"):
        try:
            opener.open(f"{scheme}://{host}:{port}/-/healthz", timeout=2).close()
        except (OSError, HTTPException) as error:
            failures.append(f"{scheme}: {error}")
        else:
            return None
    return "; ".join(failures)


if __name__ == "__main__":
    sys.exit(main())
