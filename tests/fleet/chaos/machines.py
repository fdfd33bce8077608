"""Machines on one switch: a network namespace each, from which others can be cut off.

This process must have a network namespace of its own (`unshare --net`): addresses are fixed.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts.process import command

HERE = "172.30.5.10"
"""The balancer's address in `deploy/fleet`; the clients and the registry have it too."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


@dataclass(frozen=True)
class Machine:
    """One namespace, which the process `pid` keeps."""

    address: str
    pid: int

    @property
    def under(self) -> list[str]:
        """The command that starts another one on this machine."""
        without = [word for name in _PROXIES for word in ("-u", name)]
        return [command("env"), *without, command("nsenter"), f"--net=/proc/{self.pid}/ns/net"]

    def cut_off(self, *addresses: str) -> None:
        """Drop all packets to and from other machines, silently."""
        for address in addresses:
            self._firewall(f"-A INPUT -s {address} -j DROP")
            self._firewall(f"-A OUTPUT -d {address} -j DROP")

    def reconnect(self) -> None:
        """Drop nothing any more."""
        self._firewall("-F")

    def _firewall(self, line: str) -> None:
        subprocess.run([*self.under, command("iptables"), "-w", *line.split()], check=True)


@contextmanager
def running(addresses: Mapping[str, str]) -> Iterator[dict[str, Machine]]:
    """Give machines by name."""
    with ExitStack() as stack:
        _ip("link set lo up")
        _ip("link add switch type bridge")
        _ip(f"addr add {HERE}/24 dev switch")
        _ip("link set switch up")
        machines = {}
        for number, (name, address) in enumerate(addresses.items()):
            words = [command("unshare"), "--net", command("sleep"), "infinity"]
            holder = subprocess.Popen(words)
            stack.callback(holder.wait)
            stack.callback(holder.kill)
            machines[name] = machine = Machine(address, holder.pid)
            _connect(machine, f"port{number}")
        yield machines


def _connect(machine: Machine, port: str) -> None:
    """Plug the cable of a machine into the switch."""
    _ip(f"link add {port} type veth peer name eth0")
    while not _is_apart(machine):
        pass
    _ip(f"link set eth0 netns {machine.pid}")
    _ip(f"link set {port} master switch up")
    for line in ("link set lo up", f"addr add {machine.address}/24 dev eth0", "link set eth0 up"):
        subprocess.run([*machine.under, command("ip"), *line.split()], check=True)


def _is_apart(machine: Machine) -> bool:
    """Return True once the machine's process has its own namespace."""
    here, there = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", machine.pid))
    return here != there


def _ip(line: str) -> None:
    subprocess.run([command("ip"), *line.split()], check=True)
