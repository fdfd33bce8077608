"""What the tests of policies ask for: images, policies, paths, and counts."""

import json
from pathlib import Path
from typing import Any

from tests.fakes import content
from tests.policies.signing import Signer
from tests.running import Answer, Proxy

REPO = "library/app"
V2 = f"/v2/{REPO}"
IMAGE = content.image(1, layers=(1000,))
[LAYER] = IMAGE.layers
OTHER = content.image("other", layers=(3000,))
INDEX = content.multi_platform(3, layers=(500,))
AMD64, ARM64 = INDEX.children


def required(signer: Signer, tmp_path: Path, **more: Any) -> dict[str, Any]:
    keys = [signer.file(tmp_path)]
    return {"name": "signed", "images": ["**"], "require": {"cosign": {"keys": keys}}} | more


def write(file: Path, text: str) -> None:
    """Replace a file in one step, so that no reader sees half of it."""
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").replace(file)


def denied(tmp_path: Path, *digests: str, **more: Any) -> dict[str, Any]:
    file = tmp_path / "denied"
    write(file, "# known to be bad\n" + "".join(f"{one} # SEC-1\n" for one in digests))
    return {"name": "bad", "deny_digests_file": str(file)} | more


def said(answer: Answer) -> dict[str, Any]:
    [error] = json.loads(answer.body)["errors"]
    assert isinstance(error, dict)
    return error


def is_denied(answer: Answer, name: str) -> bool:
    if answer.status != 403:
        return False
    error = said(answer)
    return error["code"] == "DENIED" and error["detail"] == {"policy": name}


def manifest(ref: str) -> str:
    return f"{V2}/manifests/{ref}"


def blob(digest: str) -> str:
    return f"{V2}/blobs/{digest}"


async def count(proxy: Proxy, policy: str, outcome: str) -> int:
    page = (await proxy.get("/metrics")).body.decode()
    start = f'millpond_policy_decisions_total{{outcome="{outcome}",policy="{policy}"}}'
    other = f'millpond_policy_decisions_total{{policy="{policy}",outcome="{outcome}"}}'
    [line] = [one for one in page.splitlines() if one.startswith((start, other))]
    return int(float(line.split()[-1]))


async def prepared(proxy: Proxy) -> int:
    page = (await proxy.get("/metrics")).body.decode()
    [line] = [it for it in page.splitlines() if it.startswith("millpond_prepared_answers_total")]
    return int(float(line.split()[1]))
