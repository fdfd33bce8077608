import subprocess
import sys
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


def test_every_module_can_be_imported_alone_without_warnings() -> None:
    script = (
        "import importlib, subprocess, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [m for m in sys.modules if m.partition('.')[0] == 'proxy']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *MODULES],
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
