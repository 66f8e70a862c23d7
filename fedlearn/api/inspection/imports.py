"""The imports of an app, followed in its sources: which fail wherever the app runs.

Only imports that run whenever their module is imported are judged: those at the top level of a
module, not under ``if`` or ``try``, and not in a function. No code of the app runs, and no package
that it names is imported. A module that makes names at run time (``from x import *``,
``__getattr__``, ``globals()``, ``sys.modules``) is taken to have every name.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fedlearn.api.inspection.sources import AppSources
from fedlearn.app.checks import Application
from fedlearn.errors import JobError

__all__ = ["Imports", "follow_imports"]

_MAX_SHOWN: Final = 3
_OF_EVERY_MODULE: Final = frozenset(
    {"__annotations__", "__builtins__", "__dict__", "__doc__", "__file__", "__loader__"}
    | {"__name__", "__package__", "__path__", "__spec__"}
)
_MAKES_NAMES: Final = frozenset({"exec", "globals", "locals", "setattr", "vars"})
_HOLDS_NAMES: Final = frozenset({"__dict__", "modules"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Imports:
    """What an app imports.

    ``client``  the paths of the app's files that its ClientApp may import
    ``absent``  where a package is imported that is neither in the app nor installed here,
                ``file:line: name``
    """

    client: frozenset[str]
    absent: tuple[str, ...]


def follow_imports(sources: AppSources, application: Application, *, where: str) -> Imports:
    """Follow the imports of both apps.

    :param where: the name of the app in messages, a folder or a bundle.
    :raises JobError: naming file and line of imports that fail, three at most, or the module or
        the name in ``pyproject.toml`` that the app does not have.
    """
    walk = _Walk(sources)
    for key in ("serverapp", "clientapp"):
        module, _, attribute = getattr(application, key).partition(":")
        if not walk.ours(module):
            if _installed(module):
                continue
            raise _no_module(where, key, module)
        if module not in sources.modules:
            raise _no_module(where, key, module)
        walk.visit(module)
        if not walk.has(module, attribute):
            raise JobError(
                f"{where}/pyproject.toml: {key} names {attribute!r} in {module}, and "
                f"{sources.modules[module]} does not define it",
                hint='for example: app = ServerApp(), and serverapp = "myapp.server_app:app"',
            )
    if walk.faults:
        raise JobError(
            "\n".join(f"{where}/{fault}" for fault in walk.faults[:_MAX_SHOWN]),
            hint="the app would fail as soon as it is imported",
        )
    entry = application.clientapp.partition(":")[0]
    return Imports(client=walk.reached(entry), absent=tuple(walk.absent))


def _no_module(where: str, key: str, module: str) -> JobError:
    return JobError(
        f"{where}/pyproject.toml: {key} names the module {module}, which is not in the bundle",
        hint=f"the bundle needs {module.replace('.', '/')}.py; `fab-include` in [tool.flwr.app] "
        "of its pyproject.toml states what goes in",
    )


def _installed(module: str) -> bool:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.modules:
        return True
    try:
        # The spec of a top-level name is found without importing anything.
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


@dataclass(slots=True)
class _Walk:
    sources: AppSources
    faults: list[str] = field(default_factory=list)
    absent: dict[str, None] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _packages: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._packages = self.sources.folders | self.sources.modules.keys()

    def ours(self, name: str) -> bool:
        """Whether the top-level package of a module is in the bundle."""
        return name.partition(".")[0] in self._packages

    def visit(self, name: str) -> None:
        """Judge the imports of a module of the bundle, and of the modules that it imports."""
        for package in _parents(name):
            if package in self._seen or package not in self.sources.modules:
                continue
            self._seen.add(package)
            path = self.sources.modules[package]
            for node in self.sources.trees[path].body:
                at = f"{path}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        self._module(at, alias.name)
                elif isinstance(node, ast.ImportFrom):
                    self._names(at, package, path, node)

    def _module(self, at: str, name: str) -> bool:
        if not self.ours(name):
            if not _installed(name):
                self.absent.setdefault(f"{at}: {name.partition('.')[0]}")
            return False
        if name not in self._packages:
            self.faults.append(f"{at}: imports {name}, which is not in the bundle")
            return False
        self.visit(name)
        return True

    def _names(self, at: str, package: str, path: str, node: ast.ImportFrom) -> None:
        module = _absolute(package, path, node)
        if module is None:
            self.faults.append(f"{at}: imports from above the app's own top-level package")
            return
        if not self._module(at, module):
            return
        for alias in node.names:
            inner = f"{module}.{alias.name}"
            if inner in self._packages:
                self.visit(inner)
            elif alias.name != "*" and not self.has(module, alias.name):
                self.faults.append(f"{at}: imports {alias.name!r} from {module}, which has none")

    def has(self, module: str, name: str) -> bool:
        """Whether a module of the bundle has a name, as far as its source tells."""
        if f"{module}.{name}" in self._packages or name in _OF_EVERY_MODULE:
            return True
        path = self.sources.modules.get(module)
        if path is None:  # a folder without __init__.py has what is in it
            return False
        bound = frozenset(_bound(self.sources.trees[path]))
        return name in bound or "*" in bound

    def reached(self, module: str) -> frozenset[str]:
        """Return the files that a module may import, itself included."""
        found: set[str] = set()
        open_ = [module]
        while open_:
            for package in _parents(open_.pop()):
                path = self.sources.modules.get(package)
                if path is None or path in found:
                    continue
                found.add(path)
                for node in ast.walk(self.sources.trees[path]):
                    if isinstance(node, ast.Import):
                        open_ += [alias.name for alias in node.names]
                    elif isinstance(node, ast.ImportFrom):
                        base = _absolute(package, path, node)
                        if base is not None:
                            open_ += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        return frozenset(found)


def _parents(name: str) -> list[str]:
    """Return a module after the packages that it is in, which are imported first."""
    parts = name.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts) + 1)]


def _absolute(package: str, path: str, node: ast.ImportFrom) -> str | None:
    """Return the module that an import names; None for one above the top-level package."""
    if not node.level:
        return node.module or ""
    inside = package.split(".")
    if not path.endswith("__init__.py"):
        inside.pop()
    up = node.level - 1
    if up >= len(inside):
        return None
    return ".".join([*inside[: len(inside) - up], *([node.module] if node.module else [])])


def _bound(tree: ast.Module) -> Iterator[str]:
    """Yield the names that code of a module binds anywhere; ``*`` where it may bind any."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Import(names=names):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.FunctionDef(name="__getattr__"):
                yield "*"
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
            case ast.Global(names=names):
                yield from names
            case ast.Call(func=ast.Name(id=name)) if name in _MAKES_NAMES:
                yield "*"
            case ast.Attribute(attr=name) if name in _HOLDS_NAMES:
                yield "*"
            case ast.MatchMapping(rest=str(name)):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
