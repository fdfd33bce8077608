"""Options that commands share."""

import pytest
import typer
from typer.main import get_command

from proxy.cli import cli
from proxy.cli.client import Client, ErrorAnswer
from proxy.cli.command import for_each, parsed_option
from proxy.core.units import parse_seconds

CACHE = ("ls", "pull", "refresh", "drop", "pin", "unpin", "pins", "in-use", "evict", "verify")
OPTIONS = ["--json", "--config", "--storage", "--server", "--token-file", "--ca-file"]


@pytest.mark.parametrize("name", CACHE)
def test_a_command_on_a_cache_can_ask_any_server(name: str) -> None:
    command = get_command(cli).commands[name]  # type: ignore[attr-defined]
    flags = [parameter.opts[0] for parameter in command.params]
    assert flags[-6:] == OPTIONS
    assert len(command.help.split()) > 5


async def test_the_highest_status_of_all_names_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def act(_: Client, name: str) -> int:
        if name.isdigit():
            raise ErrorAnswer(int(name), f"{name!r} is refused" if name == "409" else "no")
        return len(name)

    statuses = {409: 1, 404: 2}
    client: Client = None  # type: ignore[assignment]
    work = for_each(["409", "a", "404"], act, lambda error: statuses.get(error.status))
    assert await work(client) == 2
    assert capsys.readouterr().err == "millpond: '409' is refused\nmillpond: 404: no\n"
    assert await for_each(["a", "abc", "ab"], act)(client) == 3
    with pytest.raises(ErrorAnswer):
        await for_each(["a", "500", "b"], act, lambda error: statuses.get(error.status))(client)


def test_an_option_that_cannot_be_parsed_ends_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parsed_option("--ttl", "1m", parse_seconds) == 60
    with pytest.raises(typer.Exit):
        parsed_option("--ttl", "soon", parse_seconds)
    assert capsys.readouterr().err.startswith("millpond: --ttl: not a duration; write 30s")
