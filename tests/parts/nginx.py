"""nginx with a configuration from `deploy/`, moved to loopback ports."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.parts.process import Daemon, free_port, hermetic, listens, workdir


class Nginx:
    """A running nginx."""

    def __init__(self, root: Path, config: Path, moved: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        text = config.read_text()
        replaced = {"listen 5000": f"listen 127.0.0.1:{self.port}", "/tmp/": f"{root}/", **moved}
        for old, new in replaced.items():
            assert old in text, old
            text = text.replace(old, new)
        written = root / "nginx.conf"
        written.write_text(text)
        argv = ["nginx", "-p", str(root), "-c", str(written), "-g", "daemon off;"]
        self.daemon = Daemon(argv, hermetic(root), root / "nginx.log")

    def workers(self) -> list[int]:
        """Return the ids of the processes that serve."""
        pid = self.daemon.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def requests(self) -> list[str]:
        """Return the lines of its log of requests."""
        return self.daemon.stdout.read_text().splitlines()


@contextmanager
def running(config: Path, moved: Mapping[str, str]) -> Iterator[Nginx]:
    """Give a running nginx; `moved` replaces text of its configuration."""
    with workdir("nginx") as root:
        root.chmod(0o755)  # its workers are another user
        nginx = Nginx(root, config, moved)
        nginx.daemon.start(lambda: listens(nginx.port))
        try:
            yield nginx
        finally:
            nginx.daemon.stop()
