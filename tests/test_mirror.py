"""The tables in ``README.md`` say where each module of ``proxy/`` is proven, and are up to date."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROXY = HERE.parent / "proxy"
TRIVIAL = 15
"""Lines of an ``__init__.py`` that holds nothing to prove."""

PROVEN = re.compile(r"\| `([\w/*]+\.py)` \| ((?:`tests/[\w/]+\.py` ?)+) \| ([\w ]+) \|")
OTHERS = re.compile(r"\| `(tests/[\w/]+\.py)` \| ((?:`[\w/]+\.py` ?)+) \|")
QUOTED = re.compile(r"`([^`]+)`")
LINES = (HERE / "README.md").read_text().splitlines()
ROWS = [match.groups() for line in LINES if (match := PROVEN.fullmatch(line))]
FILES = {match[1]: QUOTED.findall(match[2]) for line in LINES if (match := OTHERS.fullmatch(line))}


def own_test(module: str) -> str:
    """Return the test file that carries a module's name."""
    path = Path(module)
    name = path.parent.name if path.name == "__init__.py" else path.stem
    return (Path("tests") / path.parent / f"test_{name}.py").as_posix()


def modules() -> list[str]:
    """Return all modules, relative to ``proxy/``, that have something to prove."""
    return [
        path.relative_to(PROXY).as_posix()
        for path in sorted(PROXY.rglob("*.py"))
        if path.name != "__init__.py" or len(path.read_text().splitlines()) > TRIVIAL
    ]


MODULES = modules()
NAMELESS = [module for module in MODULES if not (HERE.parent / own_test(module)).exists()]
"""Modules without tests under their name."""

PACKAGES = sorted({Path(module).parent for module in MODULES} - {Path()})
UNLIKE = sorted(
    {
        path.relative_to(HERE.parent).as_posix()
        for package in PACKAGES
        for path in (HERE / package).glob("test_*.py")
    }
    - set(map(own_test, MODULES))
)
"""Test files of packages that carry no module's name."""


def meant(pattern: str) -> list[str]:
    """Return the modules that a row is about: those of ``*`` have no row of their own."""
    single = {module for module, _, _ in ROWS if "*" not in module}
    if "*" not in pattern:
        return [module for module in NAMELESS if module == pattern]
    return [m for m in NAMELESS if Path(m).match(pattern) and m not in single]


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((HERE.parent / file).read_text(), file)


def imported(file: str) -> set[str]:
    """Return the modules that a test file imports, and the names from them, with dots."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def helped(file: str) -> set[str]:
    """Return the modules that a test file or the helpers beside it import."""
    package = ".".join(Path(file).parent.parts)
    beside = [name for name in imported(file) if name.rpartition(".")[0] == package]
    helpers = [name.replace(".", "/") + ".py" for name in beside]
    found = [imported(one) for one in helpers if (HERE.parent / one).exists()]
    return imported(file).union(*found)


def parameters(file: str) -> set[str]:
    """Return the fixtures that a file's functions take."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for node in ast.walk(tree(file)) if isinstance(node, kinds)]
    return {argument.arg for function in functions for argument in function.args.args}


def goes_through(way: str, file: str, module: str) -> bool:
    """Return True if a test file can reach a module in the way that its row says."""
    seen = imported(file)
    match way:
        case "itself":
            dotted = ".".join(Path("proxy", module).with_suffix("").parts)
            return dotted.removesuffix(".__init__") in helped(file)
        case "its package":
            package = ".".join(Path("proxy", module).parent.parts)
            return any(name.startswith(package) for name in seen)
        case "HTTP":
            return bool(parameters(file) & {"proxy", "start"}) and "tests.running" in seen
        case "replicas":
            return not seen.isdisjoint({"tests.fleet.together", "tests.fleet.sharing"})
        case "the command":
            return not seen.isdisjoint({"tests.cli.command", "tests.parts.millpond"})
        case "a cache on the disk":
            return "tests.held" in seen
    return False


def test_every_module_has_tests_under_its_name_or_a_row() -> None:
    listed = {module for pattern, _, _ in ROWS for module in meant(pattern)}
    assert set(NAMELESS) - listed == set()


def test_no_module_has_two_rows() -> None:
    patterns = [pattern for pattern, _, _ in ROWS]
    assert sorted(patterns) == sorted(set(patterns))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_about_modules_that_have_no_tests_under_their_name(
    row: tuple[str, str, str],
) -> None:
    assert meant(row[0]), "no such module, or its tests carry its name"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tests_of_a_row_reach_its_modules_in_the_way_it_says(row: tuple[str, str, str]) -> None:
    pattern, tests, way = row
    for file in QUOTED.findall(tests):
        assert (HERE.parent / file).exists(), file
        assert goes_through(way, file, pattern), file


def test_every_test_file_of_a_package_carries_a_module_s_name_or_is_listed() -> None:
    assert sorted(FILES) == UNLIKE


@pytest.mark.parametrize("file", FILES)
def test_a_listed_test_file_covers_modules_that_exist(file: str) -> None:
    missing = [module for module in FILES[file] if not (PROXY / module).exists()]
    assert missing == []
