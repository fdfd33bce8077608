"""`python -m tests.breakages --count 100 --seed N`: break `proxy/` a little, and see who notices.

Each breakage is made in a copy of this tree. The tests that execute the broken line run first, the
quickest of them at once; if they all pass, so do the other tests of the module, up to a limit. What
no test notices is printed as a diff. An interrupted run is resumed by the same command.
"""

import argparse
import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.breakages.covering import Covering, read
from tests.breakages.sites import Site, chosen

ROOT: Final = Path(__file__).resolve().parents[2]
LEFT_OUT: Final = ("tests/clients", "tests/crash", "tests/attack", "tests/test_benchmarks.py")
"""Real clients and real programs: too slow for this, and hardly ever the first to notice."""
QUICK: Final = 15.0
"""Seconds of tests that are tried first."""
LONG: Final = 240.0
"""Seconds of tests that are tried at most."""
SLOWER: Final = 5.0
"""How many times longer than usual tests may take, with a breakage and on a busy machine."""


@dataclass(frozen=True)
class Verdict:
    """What became of one breakage. `how`: caught, hung or survived."""

    site: Site
    how: str
    by: str
    seconds: float


def main() -> int:
    """Return 0 if the share that was caught is at least what was wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.breakages", description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--at-least", type=float, default=0.95, help="share to be caught, 0 to 1")
    parser.add_argument("--state", type=Path, default=ROOT / ".breakages_cache")
    parser.add_argument(
        "--only", nargs="*", default=[], help="modules, such as proxy/core/policy.py"
    )
    parser.add_argument("--list", action="store_true", help="only print what would be broken")
    options = parser.parse_args()
    sites = chosen(ROOT, options.count, options.seed, options.only)
    if options.list:
        for site in sites:
            print(site.key)
        return 0
    options.state.mkdir(exist_ok=True)
    covering = read(_mapped(options.state / "covering", options.workers))
    results = options.state / f"seed-{options.seed}.jsonl"
    verdicts = _remembered(results, sites)
    todo = [site for site in sites if site.key not in {v.site.key for v in verdicts}]
    with _copies(options.workers) as copies, ThreadPoolExecutor(options.workers) as pool:
        running = [pool.submit(_judge, site, covering, copies) for site in todo]
        for future in as_completed(running):
            verdict = future.result()
            verdicts.append(verdict)
            with results.open("a") as file:
                file.write(json.dumps([verdict.site.key, verdict.how, verdict.by, verdict.seconds]))
                file.write("\n")
            print(f"{len(verdicts)}/{len(sites)} {verdict.how}: {verdict.site.key} {verdict.by}")
    return _report(verdicts, options.at_least)


def _mapped(directory: Path, workers: int) -> Path:
    """Return where it is written which tests execute which lines; found out if `proxy/` is newer."""
    newest = max(path.stat().st_mtime for path in (ROOT / "proxy").rglob("*.py"))
    known = list(directory.glob("*.json"))
    if not known or min(file.stat().st_mtime for file in known) < newest:
        print("Finding out which tests execute which lines ...", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        words = ["-q", "-p", "tests.breakages.covering", "-p", "no:cacheprovider", f"-n{workers}"]
        left_out = [f"--ignore={place}" for place in LEFT_OUT]
        argv = [sys.executable, "-m", "pytest", *words, *left_out]
        subprocess.run(argv, cwd=ROOT, env=os.environ | {"COVERING": str(directory)}, check=False)
    return directory


def _remembered(results: Path, sites: Sequence[Site]) -> list[Verdict]:
    known = {site.key: site for site in sites}
    lines = results.read_text().splitlines() if results.exists() else []
    rows = [json.loads(line) for line in lines]
    return [Verdict(known[key], how, by, took) for key, how, by, took in rows if key in known]


@contextmanager
def _copies(number: int) -> Iterator["SimpleQueue[Path]"]:
    """Give copies of this tree, to be taken and put back."""
    queue: SimpleQueue[Path] = SimpleQueue()
    ignored = shutil.ignore_patterns(".git", ".venv", "*_cache", "__pycache__", ".hypothesis")
    with tempfile.TemporaryDirectory(prefix="breakages-") as root:
        for copy in range(number):
            place = Path(root) / str(copy)
            shutil.copytree(ROOT, place, ignore=ignored)
            queue.put(place)
        yield queue


def _judge(site: Site, covering: Covering, copies: "SimpleQueue[Path]") -> Verdict:
    place = copies.get()
    file = place / site.path
    source = file.read_bytes()
    begun = time.monotonic()
    try:
        file.write_bytes(site.broken(source))
        how, by = "survived", ""
        for tests in _rounds(site, covering):
            how, by = _run(place, tests, covering)
            if how != "survived":
                break
    finally:
        file.write_bytes(source)
        copies.put(place)
    return Verdict(site, how, by, round(time.monotonic() - begun, 1))


def _rounds(site: Site, covering: Covering) -> list[list[str]]:
    """Return which tests to run: quick ones of the line, its others, and those of its module.

    What runs at import, such as a constant, is executed by no test; then the module's tests count.
    """
    own = _by_nearness(site, covering.of_line(site.path, site.line), covering)
    module = [test for test in covering.of_module(site.path) if test not in set(own)]
    first = _worth(own or module, covering, QUICK)
    rest = [test for test in (*own, *module) if test not in set(first)]
    by_name = [] if own or module else _by_name(site)
    return [some for some in (first, _worth(rest, covering, LONG), by_name) if some]


def _by_nearness(site: Site, tests: list[str], covering: Covering) -> list[str]:
    """Sort tests: those in the module's own test file first, then the quick ones."""
    stem = Path(site.path).stem
    return sorted(tests, key=lambda t: (f"test_{stem}." not in t, covering.seconds.get(t, 0.0)))


def _worth(tests: Sequence[str], covering: Covering, seconds: float) -> list[str]:
    taken: list[str] = []
    for test in tests:
        seconds -= covering.seconds.get(test, 0.1)
        if seconds < 0 and taken:
            break
        taken.append(test)
    return taken


def _by_name(site: Site) -> list[str]:
    """Return the test files of a module that only other processes execute."""
    parts = Path(site.path).with_suffix("").parts[1:]
    near = sorted((ROOT / "tests").joinpath(*parts[:-1]).glob("test_*.py"))
    found = [path.relative_to(ROOT).as_posix() for path in near]
    return [path for path in found if parts[-1] in path] or found[:20]


def _run(place: Path, tests: Sequence[str], covering: Covering) -> tuple[str, str]:
    usual = sum(covering.seconds.get(test, 20.0) for test in tests)
    chosen_tests = place / "chosen-tests.txt"
    chosen_tests.write_text("\n".join(tests))
    words = ["-x", "-q", "-n0", "--timeout=60", "-p", "no:cacheprovider", "--no-header"]
    argv = [sys.executable, "-m", "pytest", *words, f"@{chosen_tests}"]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        argv, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, text=True, errors="replace",
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=60 + SLOWER * usual)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "hung", "the run"
    if process.returncode == 0:
        return "survived", ""
    named = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    how = "hung" if "longer than its limit" in said else "caught"
    return how, " ".join(named[:1])[:200] or said[-200:].replace("\n", " ")


def _report(verdicts: Sequence[Verdict], wanted: float) -> int:
    counted = Counter(verdict.how for verdict in verdicts)
    for verdict in verdicts:
        if verdict.how == "survived":
            source = (ROOT / verdict.site.path).read_bytes()
            before, after = source.decode(), verdict.site.broken(source).decode()
            path = verdict.site.path
            lines = difflib.unified_diff(
                before.splitlines(), after.splitlines(), path, verdict.site.kind, lineterm="", n=2
            )
            print("\n".join(lines), end="\n\n")
    noticed = counted["caught"] + counted["hung"]
    share = noticed / max(1, len(verdicts))
    print(f"{noticed} of {len(verdicts)} caught ({share:.0%}), {counted['hung']} by a hang")
    return 0 if share >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
