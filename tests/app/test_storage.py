"""What the proxy reads from its directory when it starts."""

import json
from pathlib import Path

from tests.running import Proxy, Start

PIN = "docker.io/library/app:1"
AUTHORIZED = {"Authorization": "Bearer secret"}


async def pins(proxy: Proxy) -> list[str]:
    answer = await proxy.get("/-/pins", **AUTHORIZED)
    return [pin["pin"] for pin in json.loads(answer.body)["pins"]]


async def test_pins_that_were_added_are_there_after_a_restart(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    admin = {"token_file": str(tmp_path / "token")}
    proxy = await start(admin=admin)
    assert (await proxy.ask("PUT", f"/-/pins?pin={PIN}", **AUTHORIZED)).status == 200
    assert await pins(proxy) == [PIN]
    await proxy.close()
    assert await pins(await start(admin=admin)) == [PIN]
