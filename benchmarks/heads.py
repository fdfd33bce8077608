"""Loads a server with HEAD requests: `python -m benchmarks.heads URL CONNECTIONS SECONDS`.

Prints how many were answered, and in how many seconds, as JSON. A process of its own, so that it
counts as load. It gets 40,000 a second out of nginx, so it is not what limits slower servers.
"""

import json
import select
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

from benchmarks.wrk import Shot

_END = b"\r\n\r\n"


def per_second(shot: Shot) -> float:
    """Return how many HEAD requests a second were answered."""
    words = [shot.url, str(shot.connections), str(shot.seconds)]
    words += [f"{name}: {value}" for name, value in shot.headers.items()]
    argv = [sys.executable, "-m", __name__, *words]
    said = subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=120).stdout
    answered, seconds = json.loads(said)
    return answered / seconds


def _main(url: str, connections: str, seconds: str, *headers: str) -> None:
    parts = urlsplit(url)
    lines = [f"HEAD {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *headers, "", ""]
    request = "\r\n".join(lines).encode()
    address = (parts.hostname, parts.port)
    sockets = [socket.create_connection(address) for _ in range(int(connections))]
    by_number = {each.fileno(): each for each in sockets}
    poll = select.epoll()
    for number, each in by_number.items():
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(number, select.EPOLLIN)
        each.sendall(request)
    answered, start = 0, time.perf_counter()
    end = start + float(seconds)
    while time.perf_counter() < end:
        for number, _ in poll.poll(1):
            answer = by_number[number].recv(65536)
            while not answer.endswith(_END):
                more = by_number[number].recv(65536)
                assert more, f"hung up after {answer!r}"
                answer += more
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            answered += 1
            by_number[number].send(request)
    json.dump([answered, time.perf_counter() - start], sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
