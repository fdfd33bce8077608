"""A plain HTTP server for the libraries of clouds, which block: it runs in a thread."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple


class Asked(NamedTuple):
    """A request: method, path with its query, headers in lower case, and body."""

    method: str
    path: str
    headers: dict[str, str]
    body: str


Answer = Callable[[Asked], tuple[int, object]]
"""Returns the status and the document of an answer; a text is sent as it is."""


@contextmanager
def endpoint(answer: Answer) -> Iterator[tuple[str, list[Asked]]]:
    """Serve until the context ends; yield host and port, and the requests so far."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Asked(self.command, self.path, headers, self.rfile.read(length).decode())
            asked.append(request)
            status, document = answer(request)
            body = (document if isinstance(document, str) else json.dumps(document)).encode()
            self.send_response(status)
            self.send_header("Metadata-Flavor", "Google")
            kind = "text/plain" if isinstance(document, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the names of http.server

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
