"""What machine this is, and which versions were measured: without it numbers mean little."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.parts.process import PATH

_ROOT = Path(__file__).resolve().parents[1]
_ASKED = {
    "docker-registry": ["docker-registry", "--version"],
    "nginx": ["nginx", "-v"],
    "wrk": ["wrk", "-v"],
    "skopeo": ["skopeo", "--version"],
    "openssl": ["openssl", "version"],
}


def gather() -> dict[str, dict[str, str]]:
    """Return when and where this is, and the versions of all contestants and tools."""
    return {"machine": _machine(), "versions": _versions()}


def _machine() -> dict[str, str]:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 1e6:.0f} GB" if memory else "",
        "kernel": platform.release(),
        "congestion_control": control.read_text().strip(),
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("millpond", "aiohttp", "uvloop")}
    found = {"python": platform.python_version(), **libraries, "commit": _commit()}
    for name, argv in _ASKED.items():
        if shutil.which(argv[0], path=PATH):
            found[name] = _first_line(argv)
    return found


def _commit() -> str:
    try:
        return _first_line(["git", "-C", str(_ROOT), "describe", "--always", "--dirty"])
    except FileNotFoundError:
        return ""


def _first_line(argv: list[str]) -> str:
    env = {**os.environ, "PATH": PATH}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    return (done.stdout + done.stderr).partition("\n")[0].strip()
