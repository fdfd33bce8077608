"""A link of a certain width to another host: a network namespace, a veth pair, and tbf.

Needs root. Everything carries this process's id in its name; what a killed run left behind is
removed by the next one.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts.process import command

_NAME = "mpb"  # interface names have 15 characters


@dataclass(frozen=True, slots=True)
class Link:
    """Where a process on the far side listens, and the words to start it there with."""

    address: str
    prefix: tuple[str, ...]


def why_not() -> str:
    """Return why there can be no link here, or ''."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        _run("ip", "netns", "list")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    return ""


@contextmanager
def running(megabits: int) -> Iterator[Link]:
    """Give a far side whose sending is shaped to so many megabits a second."""
    _sweep()
    name, octet = f"{_NAME}{os.getpid()}", os.getpid() % 250
    near, far = f"198.18.{octet}.1", f"198.18.{octet}.2"
    try:
        _run("ip", "netns", "add", name)
        _run(*f"ip link add {name}n type veth peer name {name}f netns {name}".split())
        _run(*f"ip addr add {near}/30 dev {name}n".split())
        _run(*f"ip link set {name}n up".split())
        _run(*f"ip -n {name} addr add {far}/30 dev {name}f".split())
        _run(*f"ip -n {name} link set {name}f up".split())
        _run(*f"ip -n {name} link set lo up".split())
        shape = f"tbf rate {megabits}mbit burst 256kb latency 50ms"
        _run(*f"tc -n {name} qdisc add dev {name}f root {shape}".split())
        yield Link(far, ("ip", "netns", "exec", name))
    finally:
        _remove(name)


def _sweep() -> None:
    """Remove what runs that were killed have left."""
    for name in re.findall(rf"^{_NAME}\d+", _run("ip", "netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{name.removeprefix(_NAME)}").exists():
            _remove(name)


def _remove(name: str) -> None:
    ip = command("ip")
    subprocess.run([ip, "link", "del", f"{name}n"], check=False, capture_output=True)
    subprocess.run([ip, "netns", "del", name], check=False, capture_output=True)


def _run(program: str, *words: str) -> str:
    argv = [command(program), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
