"""Real programs that the tests write: credential helpers and kubelet plugins."""

import sys
from pathlib import Path


def written(file: Path, body: str) -> Path:
    """Write a Python program; `body` may use `sys`, `os`, `json`, `time`, and `sent`: its input."""
    head = f"#!{sys.executable} -S\nimport json, os, sys, time\n"
    file.write_text(f"{head}sent = sys.stdin.read()\n{body}\n")
    file.chmod(0o755)
    return file


def counting(file: Path, body: str) -> Path:
    """Write a program that also appends its input to `<file>.log`, a line per run."""
    log = f"open({str(file) + '.log'!r}, 'a').write(json.dumps([sys.argv[1:], sent]) + '\\n')"
    return written(file, f"{log}\n{body}")


def runs(file: Path) -> list[str]:
    """Return a line of JSON per run of a counting program: its arguments and its input."""
    log = Path(f"{file}.log")
    return log.read_text().splitlines() if log.exists() else []
