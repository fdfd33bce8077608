import ast
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


LONG_FUNCTIONS: dict[str, str] = {}
"""Functions with a longer body, as ``path:name``, and why. Only ever remove one."""


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a body without its docstring; functions within it count too."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (function.end_lineno or 0) - body[0].lineno + 1


def test_no_function_is_over_40_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in (ROOT / "proxy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > 40
    }
    assert long == LONG_FUNCTIONS.keys(), "too long, or an exception that is no longer needed"
