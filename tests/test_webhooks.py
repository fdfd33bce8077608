"""``docs/webhooks.md`` followed to the letter: its settings are loaded, its commands run."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.services.hooks.formats import FORMATS
from proxy.settings import Settings
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

PAGE = (Path(__file__).parents[1] / "docs" / "webhooks.md").read_text()
SETTINGS = {
    key: value
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for key, value in yaml.safe_load(block).items()
}
SECTIONS = [part.partition("\n") for part in PAGE.split("\n### ")[1:]]
COMMANDS = [
    (name, rest.partition("```sh\n")[2].partition("```")[0])
    for name, _, rest in SECTIONS
    if "```sh" in rest
]
SECRET = "5f0c64ccd4f7ab18e3d6df21f5ad5b4f"


@pytest.fixture
def hooks(tmp_path: Path) -> dict[str, Any]:
    """The hooks of the page, all for one registry, with a secret that exists."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    changed = {"secret_file": str(secret), "upstream": "docker.io"}
    return {name: hook | changed for name, hook in SETTINGS["hooks"].items()}


@pytest.fixture
async def watching(start: Start, upstream: FakeUpstream, hooks: dict[str, Any]) -> Proxy:
    upstream.add("acme/app", content.image(1), "1.2")
    proxy = await start(hooks=hooks)
    assert (await proxy.get("/v2/acme/app/manifests/1.2")).status == 200
    return proxy


def test_the_settings_of_the_page_are_valid() -> None:
    hosts = [hook["upstream"] for hook in SETTINGS["hooks"].values() if "upstream" in hook]
    upstreams = {host: {"url": f"https://{host}"} for host in hosts}
    document = {"watch": SETTINGS["watch"], "hooks": SETTINGS["hooks"], "upstreams": upstreams}
    settings = Settings.model_validate(document)
    assert {hook.format for hook in settings.hooks.values()} == set(FORMATS)
    assert len(settings.watch.images) == 3


def test_there_is_a_command_for_each_format() -> None:
    assert len(COMMANDS) == len(FORMATS)


@pytest.mark.parametrize(("sender", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
async def test_the_command_of_each_sender(watching: Proxy, sender: str, command: str) -> None:
    environment = os.environ | {"MILLPOND": f"http://{watching.app.address}", "SECRET": SECRET}
    process = await asyncio.create_subprocess_exec(
        *(
            "bash",
            "-euc",
            f'curl() {{ command curl --silent --show-error --fail "$@"; }}\n{command}',
        ),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert said == b'{"checking": 1, "ignored": 0}'
    await until(lambda: "a reported tag was checked" in watching.log.getvalue())
    assert SECRET not in watching.log.getvalue()
