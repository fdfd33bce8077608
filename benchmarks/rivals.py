"""The rivals as processes: docker-registry in proxy mode, and nginx with proxy_cache.

nginx runs one worker, with sendfile, without AIO, and with as many requests on a connection as a
client likes; without tcp_nopush, which makes it wait for 40 ms in the middle of a blob of 100 kB
here. All contestants write an access-log line a request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.upstream import Registry, Settings
from tests.parts.process import Daemon, free_port, hermetic, listens, workdir

_NGINX = """
worker_processes 1;
daemon off;
user root;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {root}/access.log combined;
  sendfile on;
  tcp_nopush off;
  keepalive_requests 100000000;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/temp;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  proxy_cache_path {root}/cache levels=1:2 keys_zone=all:10m max_size=10g use_temp_path=off;
  server {{
    listen 127.0.0.1:{port} {tls};
    location / {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_cache all;
      proxy_cache_key $request_uri;
      proxy_cache_valid 200 1h;
    }}
  }}
}}
"""


class Nginx:
    """A running nginx; the cache is in front of `upstream`."""

    def __init__(self, root: Path, upstream: str, certificate: Path | None) -> None:
        port = free_port()
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{port}"
        tls = "ssl"
        if certificate:
            files = certificate / "authority.pem", certificate / "key.pem"
            tls += f"; ssl_certificate {files[0]}; ssl_certificate_key {files[1]}"
        config = root / "nginx.conf"
        listen = tls if certificate else ""
        config.write_text(_NGINX.format(root=root, port=port, tls=listen, upstream=upstream))
        argv = ["nginx", "-c", str(config), "-e", str(root / "error.log")]
        self._daemon = Daemon(argv, hermetic(root), root / "nginx.log")
        self._port = port

    @property
    def pid(self) -> int:
        """The id of the master process, whose child is the worker."""
        return self._daemon.pid

    def start(self) -> None:
        """Start it."""
        self._daemon.start(lambda: listens(self._port))

    def stop(self) -> None:
        """Stop it."""
        self._daemon.stop()


@contextmanager
def nginx(upstream: str, certificate: Path | None = None) -> Iterator[Nginx]:
    """Give a running nginx with an empty cache before `upstream`, a base URL."""
    with workdir("nginx") as root:
        server = Nginx(root, upstream, certificate)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def registry_proxy(upstream: str) -> Iterator[Registry]:
    """Give a running docker-registry in proxy mode with an empty cache before `upstream`."""
    with workdir("rival") as root:
        registry = Registry(root, root / "storage", Settings(proxy=upstream))
        with registry.running():
            yield registry
