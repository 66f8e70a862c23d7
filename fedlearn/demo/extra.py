"""Optional packages, imported when the demo needs them and not before."""

from __future__ import annotations

import importlib
from types import ModuleType

from fedlearn.errors import ConfigError

__all__ = ["INSTALL", "optional"]

INSTALL = "pip install 'fedlearn[demo]'"


def optional(module: str, *, needed_for: str) -> ModuleType:
    """Import ``module`` and return it.

    :raises ConfigError: when its distribution is not installed; the hint is the command
        that installs it.
    """
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise ConfigError(
            f"{needed_for} needs the package {_DISTRIBUTIONS.get(root, root)!r}, "
            "which is not installed",
            hint=INSTALL,
        ) from None


_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
