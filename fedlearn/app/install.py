"""Installs an application bundle: unpacks it, reads its project file, and loads its app.

The coordinator does this for the ServerApp, and the client in its TEE for the ClientApp; neither
trusts the bundle. :mod:`fedlearn.app.checks` decides what it may contain. Here it is written to a
private folder, file by file, never as a link and never outside of the folder.

The page is docs/how-to/add-a-dependency-at-sites.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedlearn.app.checks import OUR_PACKAGES, read_bundle
from fedlearn.errors import JobError

__all__ = ["Installed", "check_packages", "unpack"]

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An unpacked bundle. ``config`` is its run config, flat: keys are joined by dots."""

    folder: Path
    name: str
    serverapp: str
    clientapp: str
    config: Mapping[str, object]

    def run_config(self, overrides: Mapping[str, Scalar]) -> dict[str, object]:
        """Return the run config with a job's overrides.

        :raises JobError: for a key that the application does not have.
        """
        for key in overrides:
            if key not in self.config:
                raise JobError(
                    f"config: {key!r} is not in the run config of {self.name}",
                    hint=f"it has {', '.join(sorted(self.config)) or 'none'}",
                )
        return {**self.config, **overrides}

    def load(self, which: Literal["serverapp", "clientapp"]) -> Any:
        """Import the app and return the object that the bundle names.

        The folder is put first on the module path. What user code raises while it is imported is
        not changed.

        :raises JobError: when the named attribute does not exist.
        """
        target = self.serverapp if which == "serverapp" else self.clientapp
        module_name, _, attribute = target.partition(":")
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
        if not hasattr(module, attribute):
            raise JobError(f"{self.name}: {module_name} has no {attribute!r}")
        return getattr(module, attribute)


def check_packages() -> None:
    """Check that the four packages of fedlearn come from one place, so that none was replaced.

    :raises JobError: naming the two that differ.
    """
    homes: dict[Path, str] = {}
    for name in sorted(OUR_PACKAGES):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise JobError(f"the package {name!r} is not installed")
        homes.setdefault(Path(spec.origin).resolve().parent.parent, name)
    if len(homes) != 1:
        first, second = sorted(homes.values())[:2]
        raise JobError(
            f"the packages {first!r} and {second!r} come from different places",
            hint="a module on the module path has the name of a package of fedlearn",
        )


def unpack(bundle: bytes, folder: Path) -> Installed:
    """Write a bundle into ``folder``, which must not exist, and read its project file.

    :raises JobError: when the bundle may not run here.
    """
    application, files = read_bundle(bundle)
    folder.mkdir(mode=0o700, parents=True)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(content)
    return Installed(
        folder=folder,
        name=application.name,
        serverapp=application.serverapp,
        clientapp=application.clientapp,
        config=application.defaults,
    )
