"""What do 100 access rules and Bearer tokens cost for a cached manifest?"""

import json
from base64 import b64encode
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks import ours, wrk
from benchmarks.bench import Bench, Server
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection
from benchmarks.rows import Row, at_most
from benchmarks.upstream import ACCEPT
from benchmarks.wrk import Shot

_LAYER = 64_000
_RULES = 100
_USER = "bench"
_PASSWORD = "bench"
_BCRYPT = "$2b$10$BoOYwmpEzD0VEpL73InrrOSmD3cpzmNBSMTIlM1W3mAQDaDumsRqq"


def run(bench: Bench) -> list[Row]:
    """Return the CPU of a manifest by tag with rules and a token, beside one without access.

    Pulls are audited: in their request lines, and in a file.
    """
    image = bench.content.image(_LAYER)
    path = f"/v2/{image.repository}/manifests/{image.tag}"
    users = bench.root / "htpasswd"
    users.write_text(f"{_USER}:{_BCRYPT}\n")
    with Connection(bench.url) as connection:
        body = connection.get(path, **ACCEPT)
    with ExitStack() as stack:
        open_to_all = stack.enter_context(ours.millpond(bench.url))
        _warm(open_to_all, path, ACCEPT, body)
        turns = {"open": partial(_turn, open_to_all, path, ACCEPT)}
        for name, more in (
            ("rules", {}),
            ("file", {"audit_file": str(bench.root / "audit.jsonl")}),
        ):
            access = {"access": {**_access(str(users)), **more}}
            guarded = stack.enter_context(ours.millpond(bench.url, access))
            headers = {**ACCEPT, "Authorization": f"Bearer {_token(guarded, image.repository)}"}
            _warm(guarded, path, headers, body)
            turns[name] = partial(_turn, guarded, path, headers)
        results = bench.interleaved(turns)
    rules, file, rival = results["rules"], results["file"], "without access"
    work = f"manifest by tag with {_RULES} rules and a token"
    return [
        Row("access_cpu", f"{work}, CPU", "µs", rules, rival, results["open"], at_most(1.3)),
        Row("audit_cpu", f"{work}, audit file, CPU", "µs", file, rival, results["open"]),
    ]


def _access(users: str) -> dict[str, Any]:
    """Return settings whose last rule is the one that matches."""
    others = [
        {"allow": "pull", "images": [f"docker.io/team-{number}/**"], "to": [f"group:{number}"]}
        for number in range(_RULES - 1)
    ]
    rules = [*others, {"allow": "pull", "to": [f"user:{_USER}"]}]
    return {"htpasswd_file": users, "token_ttl": "1h", "rules": rules}


def _token(server: Server, repository: str) -> str:
    """Return a token of the server's own, as a client gets it."""
    login = b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
    query = f"service=bench&scope=repository:{repository}:pull"
    with Connection(server.url) as connection:
        answer = connection.get(f"/-/token?{query}", Authorization=f"Basic {login}")
    return str(json.loads(answer)["token"])


def _warm(server: Server, path: str, headers: Mapping[str, str], body: bytes) -> None:
    with Connection(server.url) as connection:
        for _ in range(3):
            assert connection.get(path, **headers) == body, f"{server.url}{path}: another body"


def _turn(server: Server, path: str, headers: Mapping[str, str]) -> float:
    """Return microseconds of CPU a request."""
    before = cpu_seconds(server.pid)
    load = wrk.fire(Shot(server.url + path, headers))
    return (cpu_seconds(server.pid) - before) / load.requests * 1e6
