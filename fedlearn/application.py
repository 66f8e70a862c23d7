"""What may be inside a Flower application that is to run next to our own packages.

Flower puts an application's folder first on Python's path, so code in it that is named like
one of our packages would take that package's place. Such an application is refused, as a
folder and as a bundle (a FAB: a zip file with a ``pyproject.toml`` at its root).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from attestation import toml
from fedlearn.config import file_bytes
from fedlearn.errors import JobError

__all__ = ["MAX_BUNDLE_BYTES", "OUR_PACKAGES", "Application", "check_bundle", "check_folder"]

OUR_PACKAGES: Final = frozenset({"attestation", "edge", "fedlearn", "server"})
"""The import packages of this distribution."""

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
"""Upper bound of one bundle, packed and unpacked; Flower itself takes 10 MiB by default."""

_MAX_ENTRIES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What an application's ``pyproject.toml`` says.

    ``defaults`` is its ``[tool.flwr.app.config]``, which a job's ``[config]`` overrides.
    """

    name: str
    version: str
    defaults: Mapping[str, object]


def check_folder(folder: Path) -> Application:
    """Return what is in ``folder``.

    :raises JobError: when it is not a Flower application, or takes the name of our packages.
    """
    if not folder.is_dir():
        problem = "is not a directory" if folder.exists() else "does not exist"
        raise JobError(
            f"{folder}: the application {problem}",
            hint="`app` names the folder with the Flower app's pyproject.toml",
        )
    project = folder / "pyproject.toml"
    if not project.is_file():
        raise JobError(
            f"{folder}: not a Flower application: it has no pyproject.toml",
            hint="`fedlearn job init` writes one to start from",
        )
    _check_names((entry.name for entry in folder.iterdir()), str(folder))
    return _check_project(file_bytes(project), str(project))


def check_bundle(bundle: bytes, *, where: str = "the bundle") -> Application:
    """Return what is in ``bundle``.

    :raises JobError: when it is not a bundle, too large, has paths that leave it, or takes
        the name of our packages.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise JobError(f"{where}: {len(bundle)} bytes; at most {MAX_BUNDLE_BYTES} are taken")
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            entries = archive.infolist()
            _check_entries(entries, where)
            names = {PurePosixPath(entry.filename).parts[0] for entry in entries}
            if "pyproject.toml" not in names:
                raise JobError(f"{where}: has no pyproject.toml at its root")
            _check_names(names, where)
            if archive.getinfo("pyproject.toml").file_size > toml.MAX_TOML_BYTES:
                raise JobError(f"{where}: its pyproject.toml is too large")
            return _check_project(archive.read("pyproject.toml"), f"{where}: pyproject.toml")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, RuntimeError):
        raise JobError(f"{where}: is not a Flower app bundle") from None


def _check_entries(entries: list[zipfile.ZipInfo], where: str) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise JobError(f"{where}: has more than {_MAX_ENTRIES} files")
    if sum(entry.file_size for entry in entries) > MAX_BUNDLE_BYTES:
        raise JobError(f"{where}: unpacks to more than {MAX_BUNDLE_BYTES} bytes")
    if len({entry.filename for entry in entries}) != len(entries):
        raise JobError(f"{where}: holds a path twice")
    for entry in entries:
        path = PurePosixPath(entry.filename)
        unsafe = path.is_absolute() or ".." in path.parts or "\\" in entry.filename
        if unsafe or not path.parts:
            raise JobError(f"{where}: holds the path {entry.filename[:80]!r}, which leaves it")


def _check_names(names: Iterable[str], where: str) -> None:
    for name in sorted(names):
        if name.split(".", 1)[0].lower() in OUR_PACKAGES and name.count(".") <= 2:
            raise JobError(
                f"{where}: holds {name!r}, which would take the place of a package of fedlearn",
                hint=f"rename it; no module may be called {', '.join(sorted(OUR_PACKAGES))}",
            )


def _check_project(data: bytes, where: str) -> Application:
    try:
        project = toml.parse(data).table
        flower = project["tool"]["flwr"]["app"]
        components = flower["components"]
        apps = {key: components[key] for key in ("serverapp", "clientapp")}
        name, version = project["project"]["name"], project["project"]["version"]
        defaults = _flat(flower.get("config", {}))
    except toml.TomlError as error:
        raise JobError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise JobError(
            f"{where}: needs project.name, project.version and, in [tool.flwr.app.components], "
            "serverapp and clientapp",
            hint='for example: serverapp = "myapp.server_app:app"',
        ) from None
    if not isinstance(name, str) or not name or not isinstance(version, str):
        raise JobError(f"{where}: project.name and project.version must be text")
    for key, target in apps.items():
        module, _, attribute = target.partition(":") if isinstance(target, str) else ("", "", "")
        if not module or not attribute.isidentifier():
            raise JobError(f'{where}: {key} must be "module:attribute", not {target!r}')
        if module.split(".")[0] in OUR_PACKAGES:
            raise JobError(
                f"{where}: {key} is in {module.split('.')[0]!r}, a package of fedlearn",
                hint="rename the application's package",
            )
    return Application(name=name, version=version, defaults=MappingProxyType(defaults))


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables become dotted keys, as in Flower."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
