"""The layout of the four packages: no circle of imports, small folders, modules of one idea."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("attestation", "edge", "fedlearn", "server")
MOST_MODULES = 15
MOST_LINES = 450
MOST_TESTS = 25
REASON = "Long because"


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    for start in sorted(graph.modules):
        if start in order:
            continue
        calls: list[tuple[str, Iterator[str]]] = []

        def enter(module: str, calls: list[tuple[str, Iterator[str]]] = calls) -> None:
            order[module] = lowest[module] = len(order)
            stack.append(module)
            imported = sorted(graph.find_modules_directly_imported_by(module))
            calls.append((module, iter(imported)))

        enter(start)
        while calls:
            module, imported = calls[-1]
            for other in imported:
                if other not in order:
                    enter(other)
                    break
                if other in stack:
                    lowest[module] = min(lowest[module], order[other])
            else:
                calls.pop()
                if calls:
                    lowest[calls[-1][0]] = min(lowest[calls[-1][0]], lowest[module])
                if lowest[module] == order[module]:
                    at = stack.index(module)
                    if len(stack) - at > 1:
                        found.append(sorted(stack[at:]))
                    del stack[at:]
    return found


def modules() -> list[Path]:
    """Return every module that people write, relative to the root."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [
        path.relative_to(ROOT) for path in paths if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


def test_no_circle_of_imports_not_even_a_deferred_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # The folders of tests have the names of the packages; the graph is to be of the packages.
    monkeypatch.syspath_prepend(ROOT)
    for package in PACKAGES:
        monkeypatch.delitem(sys.modules, package, raising=False)
    # The graph has the imports inside functions and those for type checkers only, too.
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    assert "server.rpc.guard" in graph.modules
    found = circles(graph)
    assert not found, "modules import each other: " + "; ".join(map(", ".join, found))


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ("a>b b>c", []),
        ("a>b b>c c>a", [["a", "b", "c"]]),
        ("a>b b>a c>d d>c b>c", [["a", "b"], ["c", "d"]]),
        ("a>b a>c b>d c>d", []),
    ],
)
def test_circles_are_found_where_there_are_some(imports: str, expected: list[list[str]]) -> None:
    graph = grimp.ImportGraph()
    for arrow in imports.split():
        importer, imported = arrow.split(">")
        graph.add_import(importer=importer, imported=imported)
    assert sorted(circles(graph)) == expected


def test_no_folder_has_more_than_fifteen_modules() -> None:
    counts: dict[str, int] = {}
    for path in modules():
        if path.name != "__init__.py":
            counts[str(path.parent)] = counts.get(str(path.parent), 0) + 1
    assert counts["server/rpc"] > 1
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_a_long_module_states_why_it_is_long() -> None:
    found = set()
    for path in modules():
        text = (ROOT / path).read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        reasons = [line for line in docstring.splitlines() if line.startswith(REASON)]
        if len(text.splitlines()) > MOST_LINES and not reasons:
            found.add(str(path))
    assert not found, f"over {MOST_LINES} lines; part them, or begin a line with {REASON!r}"


def test_folders_of_tests_are_those_of_the_sources() -> None:
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    folders = {path.parent for path in files if path.parts[0] in PACKAGES}
    assert Path("server/admission") in folders
    strays = [str(path) for path in folders if not (ROOT / path / "__init__.py").is_file()]
    assert not strays, f"folders of tests without a package of that name: {strays}"
    counts = {folder: sum(path.parent == folder for path in files) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_TESTS} == {}


def changes_of_the_module_path(text: str) -> list[int]:
    """Return the lines that change ``sys.path`` in place or replace it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.stmt, ast.expr)):
            continue
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value]
        for target in targets:
            inner = target.value if isinstance(target, ast.Subscript) else target
            if ast.unparse(inner) == "sys.path":
                found.append(node.lineno)
    return sorted(found)


def test_no_test_changes_the_module_path_for_good() -> None:
    lines = ["sys.path.insert(0, x)", "sys.path[:0] = [x]", "sys.path += [x]", "sys.path = []"]
    lines.append("x = sys.path")
    assert changes_of_the_module_path("\n".join(lines)) == [1, 2, 3, 4]
    found = {
        str(path.relative_to(ROOT)): changes
        for path in (ROOT / "tests").rglob("*.py")
        if (changes := changes_of_the_module_path(path.read_text(encoding="utf-8")))
    }
    assert not found, f"monkeypatch.syspath_prepend() takes back what it does: {found}"
