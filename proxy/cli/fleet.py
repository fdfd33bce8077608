"""``millpond fleet``: the replicas that share a Redis with this one."""

import time
from typing import TYPE_CHECKING

import typer

from proxy.cli.command import JsonOption, Work, on_server
from proxy.cli.formatting import age, print_error, print_line, print_table
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH = "/-/fleet"


@on_server
def fleet(as_json: JsonOption = False) -> Work:
    """List the replicas of the fleet, and what they download."""

    async def work(client: "Client") -> int:
        if as_json:
            typer.echo(await client.read("GET", PATH))
            return 0
        replicas = (await client.ask("GET", PATH))["replicas"]
        if not replicas:
            print_error("there is no fleet: fleet.redis is not set, or Millpond is not running")
            return 0
        rows = [
            (
                one["address"],
                str(one["version"]),
                age(time.time() - one["uptime_seconds"]),
                f"{show_size(one['disk_bytes'])} of {show_size(one['disk_limit_bytes'])}",
                f"{one['downloads']:,}",
                str(one["health"]),
            )
            for one in replicas
        ]
        print_table(("ADDRESS", "VERSION", "UP", "DISK", "DOWNLOADS", "HEALTH"), rows)
        for one in replicas:
            for download in one["downloading"]:
                size = "?" if download["size"] is None else show_size(download["size"])
                done = f"{show_size(download['bytes'])} of {size}"
                name = f"{download['upstream']}/{download['repository']}@{download['digest']}"
                print_line(f"{one['address']} downloads {name}: {done}")
        return 0

    return work
