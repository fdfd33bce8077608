"""The internals of aiohttp that a connection uses; other tests cover its behaviour over HTTP."""

import ast
from pathlib import Path

from aiohttp.web import RequestHandler, Server

from proxy.web import connection, server

PRIVATE = {
    "_current_request",
    "_force_close",
    "_loop",
    "_messages",
    "_next_keepalive_close_time",
    "_request_count",
    "_upgraded",
    "_waiter",
    "_kwargs",
}
"""Private attributes of aiohttp that may change in any release; this list may only shrink."""


def used(module: Path) -> set[str]:
    """Private attributes that a module's classes use but do not define."""
    found: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef):
            inside = list(ast.walk(node))
            attributes = [each for each in inside if isinstance(each, ast.Attribute)]
            defined = {each.name for each in inside if isinstance(each, ast.FunctionDef)}
            defined |= {each.value for each in inside if isinstance(each, ast.Constant)}
            private = {each.attr for each in attributes if each.attr.startswith("_")}
            [init] = [it for it in inside if getattr(it, "name", "") == "__init__"] or [node]
            stored = [
                it for it in ast.walk(init) if isinstance(getattr(it, "ctx", None), ast.Store)
            ]
            own = {it.attr for it in stored if isinstance(it, ast.Attribute)}
            found |= {name for name in private - defined - own if not name.startswith("__")}
    return found


def test_no_more_private_attributes_of_aiohttp_are_used() -> None:
    files = [Path(module.__file__) for module in (connection, server) if module.__file__]
    assert set().union(*map(used, files)) == PRIVATE


def test_the_private_attributes_exist() -> None:
    names = {*vars(RequestHandler), *RequestHandler.__slots__, *Server.__init__.__code__.co_names}
    names |= {name for base in RequestHandler.__mro__ for name in getattr(base, "__slots__", ())}
    assert names >= PRIVATE
