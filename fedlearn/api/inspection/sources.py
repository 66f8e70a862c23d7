"""The Python sources of an app, read and compiled, and never run.

What an app does when it runs is decided where it runs
(:mod:`server.flower.aggregation.aggregator`). What is found here is a hint, except that a file
which cannot be compiled cannot be imported.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from fedlearn.errors import JobError

__all__ = ["AppSources", "StartedStrategy", "read_sources"]

_MAX_SHOWN: Final = 3
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_GRID: Final = frozenset({"push_messages", "pull_messages", "send_and_receive"})
_STRATEGY: Final = "flwr.serverapp.strategy"
_NOT: Final = ("Result", "Strategy")
"""What Flower's module has that is no strategy by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedStrategy:
    """A strategy that an app makes: where, which class, and the options that are written out.

    ``title`` is the name of Flower's class, or a class of the app with its base. ``computed`` are
    the options that are not written out; ``None`` among them stands for ``**options``.
    """

    where: str
    title: str
    options: Mapping[str, object]
    computed: frozenset[str | None] = frozenset()


@dataclass(frozen=True)
class AppSources:
    """The Python sources of a bundle, by their paths in it.

    ``folders`` are the folders of all its files, as dotted names: Python imports each of them as a
    package, with or without sources in it.
    """

    trees: Mapping[str, ast.Module]
    folders: frozenset[str] = frozenset()

    @cached_property
    def modules(self) -> Mapping[str, str]:
        """The path of each module by its dotted name, as Python imports it from the bundle."""
        found = {}
        for path in self.trees:
            parts = PurePosixPath(path).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name:
                found[name] = path
        return MappingProxyType(found)

    def single_updates(self, *, own_strategy: bool) -> tuple[str, ...]:
        """Return where the app needs updates of single sites, ``file:line: what``; at most three.

        :param own_strategy: whether the app makes the strategy. Otherwise the job's strategy
            replaces it, and a strategy class of the app is not reported.
        """
        found = [
            f"{path}:{line}: {what}"
            for path, tree in self.trees.items()
            for line, what in sorted(_asks(tree, own_strategy=own_strategy))
        ]
        return tuple(found[:_MAX_SHOWN])

    def strategies(self) -> tuple[StartedStrategy, ...]:
        """Return the strategies of ``flwr.serverapp.strategy`` that the app makes or extends."""
        return tuple(
            StartedStrategy(
                where=f"{path}:{node.lineno}",
                title=title,
                options=MappingProxyType(_plain(node)),
                computed=frozenset(item.arg for item in node.keywords) - _plain(node).keys(),
            )
            for path, tree in self.trees.items()
            for node, title in _strategies(tree)
        )

    def passes(self, keyword: str) -> bool:
        """Return whether a call in the app has this keyword argument, other than None."""
        return any(
            isinstance(node, ast.keyword)
            and node.arg == keyword
            and not (isinstance(node.value, ast.Constant) and node.value.value is None)
            for tree in self.trees.values()
            for node in ast.walk(tree)
        )

    def has_text(self, paths: frozenset[str], word: str) -> bool:
        """Return whether ``word`` is a whole text in the code of one of these files."""
        return any(
            isinstance(node, ast.Constant) and node.value == word
            for path in paths
            for node in ast.walk(self.trees[path])
        )

    def imports_name(self, paths: frozenset[str], module: str, name: str) -> bool:
        """Return whether one of these files has ``from module import name``, or reads
        ``....name`` of something."""
        return any(
            (isinstance(node, ast.ImportFrom) and node.module == module and _has(node, name))
            or (isinstance(node, ast.Attribute) and node.attr == name)
            for path in paths
            for node in ast.walk(self.trees[path])
        )


def _has(node: ast.ImportFrom, name: str) -> bool:
    return any(alias.name == name for alias in node.names)


def read_sources(files: Mapping[PurePosixPath, bytes], *, where: str) -> AppSources:
    """Return the sources in the files of a bundle (:func:`fedlearn.app.checks.read_bundle`).

    :param where: the name of the app in messages, a folder or a bundle.
    :raises JobError: naming file and line where a file is not Python that this interpreter
        compiles; at most three files are named.
    """
    trees: dict[str, ast.Module] = {}
    faults: list[str] = []
    for path in sorted(files):
        if path.suffix != ".py":
            continue
        try:
            trees[str(path)] = _compiled(files[path])
        except SyntaxError as error:
            line = f":{error.lineno}" if error.lineno else ""
            faults.append(f"{where}/{path}{line}: {error.msg} (Python {_PYTHON})")
        except (ValueError, RecursionError, MemoryError) as error:
            faults.append(f"{where}/{path}: {_reason(error)}")
    if faults:
        raise JobError(
            "\n".join(faults[:_MAX_SHOWN]),
            hint="each .py file of the bundle must compile; `fab-exclude` in [tool.flwr.app] of "
            "its pyproject.toml leaves out a file that the app does not import",
        )
    folders = {".".join(parent.parts) for path in files for parent in path.parents if parent.parts}
    return AppSources(MappingProxyType(trees), frozenset(folders))


def _compiled(source: bytes) -> ast.Module:
    # Warnings about the app's own code, such as invalid escapes, are not shown.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(source, "<app>", "exec", dont_inherit=True)
        return ast.parse(source)


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):
        return f"is not Python source: {error}"
    return "nests too deeply to be compiled"


def _asks(tree: ast.Module, *, own_strategy: bool) -> Iterator[tuple[int, str]]:
    strategies = set(_imported(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=attr)) if attr in _GRID:
                yield node.lineno, f"drives the grid itself ({attr})"
            case ast.keyword(arg="server_fn"):
                yield node.value.lineno, "uses the legacy API (server_fn)"
            case ast.ClassDef(name=name, bases=bases) if own_strategy and any(
                _last_name(base) in strategies or _of_strategy(base) for base in bases
            ):
                yield node.lineno, f"has a strategy of its own ({name})"


def _strategies(tree: ast.Module) -> Iterator[tuple[ast.Call | ast.ClassDef, str]]:
    """Yield where a module makes one of Flower's strategies, or has a class based on one."""
    imported = _imported(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if imported.get(name, _NOT[0]) not in _NOT:
                yield node, imported[name]
            case ast.Call(func=ast.Attribute(attr=title) as func):
                if _of_strategy(func) and title[:1].isupper() and title not in _NOT:
                    yield node, title
            case ast.ClassDef(name=name, bases=bases):
                for base in bases:
                    title = imported.get(_last_name(base), "")
                    if isinstance(base, ast.Attribute) and _of_strategy(base):
                        title = base.attr
                    if title:
                        yield node, f"{name}({title})"


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return the names that a module imports from Flower's strategies, as they are named there."""
    return {
        (alias.asname or alias.name): alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_STRATEGY)
        for alias in node.names
    }


def _plain(node: ast.Call | ast.ClassDef) -> dict[str, object]:
    """Return the keyword arguments of a call that are written out."""
    if isinstance(node, ast.ClassDef):
        return {}
    return {
        item.arg: item.value.value
        for item in node.keywords
        if item.arg is not None and isinstance(item.value, ast.Constant)
    }


def _last_name(base: ast.expr) -> str:
    return base.id if isinstance(base, ast.Name) else ""


def _of_strategy(base: ast.expr) -> bool:
    """Return whether a class is named by its module: ``strategy.FedAvg``, in any depth."""
    return isinstance(base, ast.Attribute) and ast.unparse(base.value).endswith("strategy")
