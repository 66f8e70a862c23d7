"""The apps that come with the demo, as files."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = ["APPS", "folder", "module", "settings"]

APPS: Final = ("images", "medpar")
_HERE: Final = Path(__file__).parent / "apps"


def folder(app: str) -> Path:
    """Return the folder of an app, which ``fedlearn job submit`` bundles.

    :raises ValueError: for a name that is not in :data:`APPS`.
    """
    if app not in APPS:
        raise ValueError(f"there is no app {app!r}; choose one of {', '.join(APPS)}")
    return _HERE / app


def settings(app: str) -> dict[str, int | float | str]:
    """Return the app's ``[tool.flwr.app.config]``, the run config of a job without overrides."""
    document = tomllib.loads((folder(app) / "pyproject.toml").read_text())
    config: dict[str, int | float | str] = document["tool"]["flwr"]["app"]["config"]
    return config


def module(app: str, name: str) -> ModuleType:
    """Return one module of an app without placing the app on the import path.

    Only for modules that import nothing of their own app: models and metrics. The comparison uses
    the same code as the sites in this way.
    """
    path = folder(app) / f"{app}_app" / f"{name}.py"
    qualified = f"_fedlearn_demo_{app}_{name}"
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the app {app!r} has no module {name!r}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[qualified]
        raise
    return loaded
