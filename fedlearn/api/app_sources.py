"""Detects in an app's sources that it needs the updates of single sites.

When the job runs, the aggregator decides this by what the app does
(:mod:`server.flower.aggregation.aggregator`). Here the sources are read and not run, so the answer
is a hint: it can be wrong in both directions.
"""

from __future__ import annotations

import ast
import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedlearn.app.checks import MAX_BUNDLE_BYTES
from fedlearn.config import file_bytes

__all__ = ["asks_for_single_updates"]

_MAX_FILES: Final = 500
_MAX_BYTES: Final = 1024 * 1024
_GRID: Final = frozenset({"push_messages", "pull_messages", "send_and_receive"})
_STRATEGY: Final = "flwr.serverapp.strategy"


def asks_for_single_updates(app: Path, *, own_strategy: bool) -> tuple[str, ...]:
    """Return where a folder or bundle needs them, as ``file:line: what``; at most three places.

    :param app: a folder, or a bundle that :func:`fedlearn.app.checks.check_bundle` has accepted.
    :param own_strategy: whether the app makes the strategy. Otherwise the job's strategy
        replaces it, and a strategy class of the app is not reported.
    """
    found: list[str] = []
    for name, source in _sources(app):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # warnings about the app's own code, such as invalid escapes, are not shown
            try:
                tree = ast.parse(source)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
        for line, what in sorted(_asks(tree, own_strategy=own_strategy)):
            found.append(f"{name}:{line}: {what}")
            if len(found) == 3:
                return tuple(found)
    return tuple(found)


def _sources(app: Path) -> Iterator[tuple[str, bytes]]:
    if app.is_file():
        with zipfile.ZipFile(io.BytesIO(file_bytes(app, limit=MAX_BUNDLE_BYTES))) as archive:
            listed = [e for e in archive.infolist() if e.filename.endswith(".py")]
            for entry in listed[:_MAX_FILES]:
                if entry.file_size <= _MAX_BYTES:
                    yield entry.filename, archive.read(entry)
        return
    paths = (path for path in sorted(app.rglob("*.py")) if not _hidden(path.relative_to(app)))
    for _, path in zip(range(_MAX_FILES), paths, strict=False):
        if path.is_file() and path.stat().st_size <= _MAX_BYTES:
            yield path.relative_to(app).as_posix(), path.read_bytes()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _asks(tree: ast.Module, *, own_strategy: bool) -> Iterator[tuple[int, str]]:
    strategies = {
        (alias.asname or alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_STRATEGY)
        for alias in node.names
    }
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


def _last_name(base: ast.expr) -> str:
    return base.id if isinstance(base, ast.Name) else ""


def _of_strategy(base: ast.expr) -> bool:
    """Return whether a base is named by its module: ``strategy.FedAvg``, in any depth."""
    return isinstance(base, ast.Attribute) and ast.unparse(base.value).endswith("strategy")
