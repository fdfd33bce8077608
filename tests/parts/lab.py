"""A lab without a network, as a process: it imports a bundle, and real clients pull from it.

It runs in a network namespace with a loopback of its own, so that nothing leads out of it. What it
is to do, and what it found, are JSON on its standard input and output.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.parts import clients as every_client
from tests.parts.millpond import REPOSITORY_ROOT, Millpond
from tests.parts.process import command, free_port, hermetic

NOWHERE = "http://192.0.2.1"  # RFC 5737: no host has it, and this namespace has no route to it
PULLING = ("docker", "containerd", "podman", "skopeo")
WITHIN = 300


def visit(root: Path, commands: Sequence[Sequence[str]], images: Iterable[str]) -> dict[str, Any]:
    """Start a lab on the cache in `root`, run commands on it, pull images with every client.

    Returns the output of each command, and the digest that each client got of each image.
    """
    order = {"root": str(root), "commands": commands, "images": [*images]}
    inside = f"ip link set lo up && exec {sys.executable} -m tests.parts.lab"
    done = subprocess.run(
        [command("unshare"), "--net", "sh", "-c", inside],
        input=json.dumps(order),
        env=hermetic(root, PYTHONPATH=str(REPOSITORY_ROOT)),
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Do what standard input says."""
    order = json.load(sys.stdin)
    found: dict[str, Any] = {"outputs": [], "pulled": {}}
    root, port = Path(order["root"]), free_port()
    lab = Millpond(root, NOWHERE, port, {"offline": True})
    lab.start()
    with contextlib.ExitStack() as stack:
        stack.callback(lab.stop)
        for words in order["commands"]:
            found["outputs"].append(run(lab, *words))
        clients = stack.enter_context(every_client.running(f"127.0.0.1:{port}"))
        for name in PULLING if order["images"] else ():
            client = clients[name]
            found["pulled"][name] = {image: client.pull(image) for image in order["images"]}
    sys.stdout.write(f"{json.dumps(found)}\n")


def run(proxy: Millpond, *words: str) -> dict[str, Any]:
    """Run a `millpond` command on a cache; return its exit status and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy", *words, "--storage", str(proxy.storage)],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


if __name__ == "__main__":
    main()
