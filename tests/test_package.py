import json
import subprocess
import sys
import tomllib
from pathlib import Path

import proxy

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "proxy").rglob("*.py")
    if path.name != "__main__.py"
)


def test_this_is_our_proxy_and_not_another_package_of_that_name() -> None:
    assert Path(str(proxy.__file__)).parent == ROOT / "proxy"


def floor(module: str) -> int:
    """The height of a module's package; imports only go down, which import-linter checks."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [order] = [one["layers"] for one in layers["contracts"] if one["type"] == "layers"]
    package = module.partition(".")[2].partition(".")[0]
    heights = {name: -at for at, row in enumerate(order) for name in row.split(" | ")}
    return heights.get(package, 1)


def test_every_module_can_be_imported_alone_without_warnings() -> None:
    """What a module cannot import stays loaded: only its own floor and those above are removed."""
    script = (
        "import importlib, json, sys\n"
        "floors = json.load(sys.stdin)\n"
        "for name in sorted(floors, key=floors.get):\n"
        "    for loaded in [m for m in sys.modules if floors.get(m, -99) >= floors[name]]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    floors = {name: floor(name) for name in MODULES}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=json.dumps(floors),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_room_is_over_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "proxy").rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
