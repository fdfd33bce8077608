"""Machines on one switch: a network namespace each, with a cable that sends so many bits a second.

Needs root. What a killed run left behind is removed by the next one, as in `benchmarks.link`.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.link import Link
from tests.parts.process import command

_NAME = "mpf"  # interface names have 15 characters


@contextmanager
def running(megabits: Mapping[str, int]) -> Iterator[tuple[str, dict[str, Link]]]:
    """Give this machine's address on the switch, and the other machines by name.

    `megabits` is what each machine sends a second at most.
    """
    _sweep()
    name, octet = f"{_NAME}{os.getpid()}", os.getpid() % 250
    here = f"198.19.{octet}.1"
    try:
        _run(f"ip link add {name}b type bridge")
        _run(f"ip addr add {here}/24 dev {name}b")
        _run(f"ip link set {name}b up")
        machines = {}
        for number, (machine, rate) in enumerate(megabits.items()):
            address = f"198.19.{octet}.{number + 10}"
            space, near, far = f"{name}n{number}", f"{name}v{number}", f"{name}p{number}"
            _run(f"ip netns add {space}")
            _run(f"ip link add {near} type veth peer name {far} netns {space}")
            _run(f"ip link set {near} master {name}b up")
            _run(f"ip -n {space} addr add {address}/24 dev {far}")
            _run(f"ip -n {space} link set {far} up")
            _run(f"ip -n {space} link set lo up")
            route = f"198.19.{octet}.0/24 dev {far} src {address}"
            _run(f"ip -n {space} route replace {route} congctl cubic")
            _shape(f"tc -n {space}", far, rate)
            machines[machine] = Link(address, ("ip", "netns", "exec", space))
        yield here, machines
    finally:
        _remove(name)


def _shape(tc: str, device: str, megabits: int) -> None:
    """Let a device send so many bits a second: small packets first, then one queue of 50 ms.

    Acknowledgements that waited behind data would make connections to busy machines slower than
    others, which the model does not know.
    """
    _run(f"{tc} qdisc add dev {device} root handle 1: htb default 20")
    _run(f"{tc} class add dev {device} parent 1: classid 1:1 htb rate {megabits}mbit")
    for number, percent, prio in ((10, 10, 0), (20, 90, 1)):
        rate = f"rate {megabits * percent // 100}mbit ceil {megabits}mbit prio {prio}"
        _run(f"{tc} class add dev {device} parent 1:1 classid 1:{number} htb {rate}")
    queue = f"bfifo limit {megabits * 1_000_000 // 8 // 20}"
    _run(f"{tc} qdisc add dev {device} parent 1:20 {queue}")
    small = "match u16 0x0000 0xff80 at 2"  # the length in the header of IPv4: below 128 bytes
    _run(f"{tc} filter add dev {device} parent 1: protocol ip u32 {small} flowid 1:10")


def _sweep() -> None:
    seen = _run("ip netns list") + _run("ip -o link show type bridge")
    for name in set(re.findall(rf"\b{_NAME}\d+(?=[nb])", seen)):
        if not Path(f"/proc/{name.removeprefix(_NAME)}").exists():
            _remove(name)


def _remove(name: str) -> None:
    ip = command("ip")
    for space in re.findall(rf"^{name}n\d+", _run("ip netns list"), re.MULTILINE):
        subprocess.run([ip, "netns", "del", space], check=False, capture_output=True)
    subprocess.run([ip, "link", "del", f"{name}b"], check=False, capture_output=True)


def _run(line: str) -> str:
    program, *words = line.split()
    argv = [command(program), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
