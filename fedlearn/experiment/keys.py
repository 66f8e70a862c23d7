"""The key of a cell: the digest of everything that its result depends on.

``SHA-256("fedlearn-cell/1\\0" | canonical JSON)`` of the job without paths, the bundle of its app,
the data, the setup, the seed, what the hooks get, and the versions of the code that computes.
A cell whose key has a result never runs again; a change of any of these gives another key.
What makes no difference to the bits of a result is not in it: the number of cells at a time, the
worker processes, the folder, the names of arms.

The page is docs/adr/0051-experiments.md.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from fedlearn import __version__
from fedlearn.errors import ConfigError
from fedlearn.identity.software import software_digest

__all__ = ["KEY_LENGTH", "cell_key", "code_versions", "environment", "path_digest"]

KEY_LENGTH: Final = 32
"""Hexadecimal digits of a key that name its folder, 128 bits."""

_DOMAIN: Final = b"fedlearn-cell/1\0"
_PATH: Final = b"fedlearn-data/1\0"
_COMPUTE: Final = ("flwr", "numpy", "scikit-learn", "scipy", "torch")
_PIECE: Final = 1 << 20


def cell_key(content: Mapping[str, Any]) -> str:
    """Return the key for everything that a result depends on, as hexadecimal digits.

    :param content: JSON-ready.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(_DOMAIN + text.encode()).hexdigest()[:KEY_LENGTH]


@cache
def code_versions() -> dict[str, str]:
    """Return what computes: the digest of fedlearn's own code, and the versions of the others."""
    found = {"fedlearn": software_digest().hex(), "python": platform.python_version()}
    for name in _COMPUTE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def environment() -> dict[str, str]:
    """Return what is recorded with a result and is not part of its key."""
    return {
        "fedlearn_version": __version__,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "implementation": sys.implementation.name,
    }


def path_digest(path: Path) -> str:
    """Return the digest of a file, or of a folder with the names of its files.

    Files that Python compiles and hidden ones are left out.

    :raises ConfigError: when it does not exist or cannot be read.
    """
    total = hashlib.sha256(_PATH)
    try:
        if path.is_file():
            total.update(_file(path))
            return total.hexdigest()
        if not path.is_dir():
            raise ConfigError("does not exist", where=str(path))
        for file in sorted(path.rglob("*")):
            parts = file.relative_to(path).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if file.is_file() and not hidden:
                name = file.relative_to(path).as_posix().encode()
                total.update(len(name).to_bytes(4, "big") + name + _file(file))
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ConfigError(f"cannot be read: {reason}", where=str(path)) from None
    return total.hexdigest()


def _file(path: Path) -> bytes:
    total = hashlib.sha256()
    with path.open("rb") as source:
        while piece := source.read(_PIECE):
            total.update(piece)
    return total.digest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
