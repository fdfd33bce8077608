"""Small deliberate breakages of a module: where one is possible, and the text that it leads to.

What no test can see is left out by construction: log lines, docstrings, texts, annotations,
assertions, `__repr__`, and what is there for the type checker.
"""

import ast
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_COMPARISONS: Final[Mapping[type[ast.cmpop], str]] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_ARITHMETIC: Final[Mapping[type[ast.operator], str]] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "//",
    ast.FloorDiv: "*",
    ast.Div: "*",
}
_UNSEEN_FUNCTIONS: Final = frozenset({"__repr__", "__str__"})
_UNSEEN_CALLS: Final = frozenset(
    {"log", "structlog", "say", "assert_never", "warnings", "cast", "TypeVar"}
)
_UNSEEN_KEYWORDS: Final = frozenset({"help", "name", "doc", "metavar", "description"})


@dataclass(frozen=True, order=True)
class Site:
    """One breakage: bytes `start` to `stop` of a file become `instead`."""

    path: str
    line: int
    kind: str
    start: int
    stop: int
    instead: str

    @property
    def key(self) -> str:
        """What names it in a report, and in a run that is resumed."""
        return f"{self.path}:{self.line}:{self.start}:{self.kind}"

    def broken(self, source: bytes) -> bytes:
        """Return the text with this breakage."""
        return source[: self.start] + self.instead.encode() + source[self.stop :]


def chosen(root: Path, count: int, seed: int, only: Sequence[str] = ()) -> list[Site]:
    """Return `count` breakages, spread evenly over the modules and over the kinds in each.

    `only` names the modules; all if there is none.
    """
    rng = random.Random(seed)
    pools = []
    files = [root / path for path in sorted(only)] or sorted((root / "proxy").rglob("*.py"))
    for file in files:
        kinds = defaultdict(list)
        for site in found(file.relative_to(root).as_posix(), file.read_bytes()):
            kinds[site.kind].append(site)
        if kinds:
            pools.append([rng.sample(sites, len(sites)) for sites in kinds.values()])
    picked: list[Site] = []
    while pools and len(picked) < count:
        rng.shuffle(pools)
        for pool in pools[: count - len(picked)]:
            sites = rng.choice(pool)
            site = sites.pop()
            if _compiles(site, (root / site.path).read_bytes()):
                picked.append(site)
            if not sites:
                pool.remove(sites)
        pools = [pool for pool in pools if pool]
    return picked


def found(path: str, source: bytes) -> list[Site]:
    """Return every breakage of one module; a few do not compile."""
    return list(_Finder(path, source).all())


def _compiles(site: Site, source: bytes) -> bool:
    try:
        compile(site.broken(source), site.path, "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Finder:
    """Walks a module's tree and skips what no test can see."""

    def __init__(self, path: str, source: bytes) -> None:
        self._path = path
        self._source = source
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts

    def all(self) -> Iterator[Site]:
        yield from self._in(ast.parse(self._source))

    def _in(self, node: ast.AST) -> Iterator[Site]:
        if _is_unseen(node):
            return
        yield from self._of(node)
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list", "bases", "type_params"}:
                continue
            children = value if isinstance(value, list) else [value]
            for child in children:
                if isinstance(child, ast.AST):
                    yield from self._in(child)

    def _of(self, node: ast.AST) -> Iterator[Site]:
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield self._site("negated condition", test, f"not ({self._text(test)})")
            case ast.stmt():
                yield from self._of_statement(node)
            case ast.ExceptHandler():
                yield from self._of_handler(node)
            case ast.Constant():
                yield from self._of_constant(node)
            case ast.expr():
                yield from self._of_operator(node)

    def _of_operator(self, node: ast.expr) -> Iterator[Site]:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                yield self._between("comparison", left, right, f" {_COMPARISONS[type(op)]} ")
            case ast.BoolOp(op=op, values=[left, right]):
                word = " or " if isinstance(op, ast.And) else " and "
                yield self._between("and, or", left, right, word)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                if not any(isinstance(side, ast.JoinedStr | ast.List) for side in (left, right)):
                    yield self._between("arithmetic", left, right, f" {_ARITHMETIC[type(op)]} ")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._site("dropped not", node, f"({self._text(operand)})")

    def _of_constant(self, node: ast.Constant) -> Iterator[Site]:
        match node.value:
            case bool() as value:
                yield self._site("constant", node, str(not value))
            case int() as value:
                yield self._site("constant", node, str(value + 1 if value < 10 else value * 1000))
            case float() as value:
                yield self._site("constant", node, str(value * 1000 + 1))

    def _of_statement(self, node: ast.stmt) -> Iterator[Site]:
        match node:
            case ast.Expr(value=ast.Await()):
                yield self._site("dropped await", node, "pass")
            case ast.Expr(value=ast.Call()):
                yield self._site("dropped call", node, "pass")
            case ast.Raise():
                yield self._site("dropped raise", node, "pass")
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield self._site("returns nothing", node, "return None")
            case ast.AugAssign() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield self._site("dropped assignment", node, "pass")
            case ast.Delete():
                yield self._site("dropped del", node, "pass")
            case ast.Break():
                yield self._site("break", node, "continue")
            case ast.Continue():
                yield self._site("continue", node, "break")

    def _of_handler(self, node: ast.ExceptHandler) -> Iterator[Site]:
        first, last = node.body[0], node.body[-1]
        if not isinstance(first, ast.Raise):
            start, stop = self._offset(first, end=False), self._offset(last, end=True)
            yield Site(self._path, node.lineno, "dropped except", start, stop, "raise")

    def _site(self, kind: str, node: ast.expr | ast.stmt, instead: str) -> Site:
        start, stop = self._offset(node, end=False), self._offset(node, end=True)
        return Site(self._path, node.lineno, kind, start, stop, instead)

    def _between(self, kind: str, left: ast.expr, right: ast.expr, instead: str) -> Site:
        """Replace the operator between two operands, and whatever brackets do not belong to them."""
        start, stop = self._offset(left, end=True), self._offset(right, end=False)
        between = self._source[start:stop].decode()
        opening, closing = between.count("("), between.count(")")
        text = ")" * closing + instead + "(" * opening
        return Site(self._path, left.lineno, kind, start, stop, text)

    def _offset(self, node: ast.expr | ast.stmt, *, end: bool) -> int:
        line = (node.end_lineno or 0) if end else node.lineno
        column = (node.end_col_offset or 0) if end else node.col_offset
        return self._starts[line - 1] + column

    def _text(self, node: ast.expr) -> str:
        start, stop = self._offset(node, end=False), self._offset(node, end=True)
        return self._source[start:stop].decode()


def _is_unseen(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.JoinedStr() | ast.AnnAssign(value=None) | ast.Import():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef(name=name) if name in _UNSEEN_FUNCTIONS:
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.ClassDef(bases=[ast.Name(id="Protocol"), *_]):
            return True
        case ast.Expr(value=ast.Call(func=func)) | ast.Call(func=func):
            return _root(func) in _UNSEEN_CALLS
        case ast.keyword(arg=arg):
            return arg in _UNSEEN_KEYWORDS
    return False


def _root(node: ast.expr) -> str:
    """Return the leftmost name of `a.b.c`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
