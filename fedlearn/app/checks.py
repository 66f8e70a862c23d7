"""What a Flower application may contain that runs next to the packages of fedlearn.

Flower puts an application's folder first on Python's path, so code in it with the name of a
package of fedlearn would replace that package. Such an application is refused, as a folder and as
a bundle (a FAB: a zip file with a ``pyproject.toml`` at its root).

The page is docs/how-to/bring-a-flower-app.md.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from attestation.config import toml
from fedlearn.config import file_bytes
from fedlearn.errors import JobError

__all__ = [
    "MAX_BUNDLE_BYTES",
    "OUR_PACKAGES",
    "Application",
    "check_bundle",
    "check_folder",
    "read_bundle",
]

OUR_PACKAGES: Final = frozenset({"attestation", "edge", "fedlearn", "server"})
"""The import packages of this distribution."""

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
"""Upper bound of one bundle, packed and unpacked; Flower's own default is 10 MiB."""

_MAX_ENTRIES: Final = 10_000
_MAX_NAME_BYTES: Final = 255
_MAX_PATH_BYTES: Final = 1024
_PROJECT: Final = "pyproject.toml"
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What an application's ``pyproject.toml`` states.

    ``serverapp``, ``clientapp``  where the apps are, as ``module:attribute``
    ``defaults``  its ``[tool.flwr.app.config]``, which a job's ``[config]`` overrides
    ``needs``     the distributions that ``project.dependencies`` names, without their versions
    """

    name: str
    version: str
    serverapp: str
    clientapp: str
    defaults: Mapping[str, object]
    needs: tuple[str, ...]


def check_folder(folder: Path) -> Application:
    """Return what is in ``folder``.

    :raises JobError: when it is not a Flower application, or has the name of a package of fedlearn.
    """
    if not folder.is_dir():
        problem = "is not a directory" if folder.exists() else "does not exist"
        raise JobError(
            f"{folder}: the application {problem}",
            hint="`app` names the folder with the Flower app's pyproject.toml",
        )
    project = folder / _PROJECT
    if not project.is_file():
        raise JobError(
            f"{folder}: not a Flower application: it has no pyproject.toml",
            hint="`fedlearn job init` writes one to start from",
        )
    _check_names((entry.name for entry in folder.iterdir()), str(folder))
    return _check_project(file_bytes(project), str(project))


def check_bundle(bundle: bytes, *, where: str = "the bundle") -> Application:
    """Return what is in ``bundle``, after every file of it was read.

    :raises JobError: when it is not a zip file, is too large packed or unpacked, has a path
        that leaves it or is not in normal form, a path twice, a file where another path has a
        folder, a link, an encrypted or damaged file, no ``pyproject.toml`` at its root, or the
        name of a package of fedlearn there; and when its ``pyproject.toml`` is not that of an
        application that may run here.
    """
    project = b""
    for path, content in _files(bundle, where):
        if path == PurePosixPath(_PROJECT):
            project = content
    return _check_project(project, f"{where}: {_PROJECT}")


def read_bundle(
    bundle: bytes, *, where: str = "the bundle"
) -> tuple[Application, Mapping[PurePosixPath, bytes]]:
    """Return what :func:`check_bundle` returns, and every file by its relative path.

    A file that is written below an empty folder under its path is inside of it. The files have
    ``MAX_BUNDLE_BYTES`` at most in all.

    :raises JobError: as :func:`check_bundle`.
    """
    files = dict(_files(bundle, where))
    application = _check_project(files[PurePosixPath(_PROJECT)], f"{where}: {_PROJECT}")
    return application, files


def _files(bundle: bytes, where: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the relative path and the content of every file of a bundle, one at a time.

    All paths are checked before the first file is read. A path is in normal form and stands for
    one file; each file is decompressed whole and its CRC-32 compared.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise JobError(f"{where}: {len(bundle)} bytes; at most {MAX_BUNDLE_BYTES} are accepted")
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            files = _check_entries(archive.infolist(), where)
            for path, entry in files.items():
                yield path, _content(archive, entry, where)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeError, ValueError):
        raise JobError(f"{where}: is not a Flower app bundle") from None


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> bytes:
    try:
        content = archive.read(entry)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
        ValueError,
    ) as error:
        raise JobError(
            f"{where}: {entry.filename[:80]!r} cannot be unpacked: {error}",
            hint="make the bundle again",
        ) from None
    if len(content) != entry.file_size:
        raise JobError(
            f"{where}: {entry.filename[:80]!r} has {len(content)} bytes, "
            f"its entry states {entry.file_size}"
        )
    return content


def _check_entries(
    entries: list[zipfile.ZipInfo], where: str
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files by path; their folders are implied."""
    if len(entries) > _MAX_ENTRIES:
        raise JobError(f"{where}: has more than {_MAX_ENTRIES} files")
    if sum(entry.file_size for entry in entries) > MAX_BUNDLE_BYTES:
        raise JobError(f"{where}: unpacks to more than {MAX_BUNDLE_BYTES} bytes")
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    folders: set[PurePosixPath] = set()
    seen: set[PurePosixPath] = set()
    for entry in entries:
        path = _checked_path(entry, where)
        if path in seen:
            raise JobError(f"{where}: holds a path twice: {str(path)[:80]!r}")
        seen.add(path)
        folders.update(path.parents)
        if entry.is_dir():
            folders.add(path)
        else:
            files[path] = entry
    for path in files:
        if path in folders:
            raise JobError(f"{where}: {str(path)[:80]!r} is a file and a folder")
    if PurePosixPath(_PROJECT) not in files:
        raise JobError(f"{where}: has no {_PROJECT} at its root")
    if files[PurePosixPath(_PROJECT)].file_size > toml.MAX_TOML_BYTES:
        raise JobError(f"{where}: its {_PROJECT} is too large")
    _check_names({path.parts[0] for path in seen}, where)
    return files


def _checked_path(entry: zipfile.ZipInfo, where: str) -> PurePosixPath:
    """Return the path of an entry, which must be in normal form."""
    name = entry.orig_filename
    path = PurePosixPath(name)
    shown = ascii(name[:80])
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise JobError(f"{where}: holds the path {shown}, which leaves it")
    if name != f"{path}/" and name != str(path):
        raise JobError(
            f"{where}: holds the path {shown}, which is not in normal form",
            hint=f"it must be {str(path)[:80]!r}",
        )
    lengths = [len(part.encode()) for part in path.parts]
    if max(lengths) > _MAX_NAME_BYTES or sum(lengths) > _MAX_PATH_BYTES or _CONTROL.search(name):
        raise JobError(f"{where}: holds the path {shown}, which cannot be the name of a file")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > entry.is_dir():
        raise JobError(f"{where}: {shown} is neither a file nor a folder")
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
        raise JobError(
            f"{where}: {shown} is encrypted, or compressed by a method that is not supported",
            hint="files of a bundle are stored or deflated",
        )
    return path


def _check_names(names: Iterable[str], where: str) -> None:
    for name in sorted(names):
        if name.split(".", 1)[0].lower() in OUR_PACKAGES and name.count(".") <= 2:
            raise JobError(
                f"{where}: holds {name!r}, which would replace a package of fedlearn",
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
        needed = project["project"].get("dependencies", [])
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
    if not isinstance(needed, list):
        raise JobError(f"{where}: project.dependencies must be a list")
    for key, target in apps.items():
        module, _, attribute = target.partition(":") if isinstance(target, str) else ("", "", "")
        if not module or not attribute.isidentifier():
            raise JobError(f'{where}: {key} must be "module:attribute", not {target!r}')
        if module.split(".")[0] in OUR_PACKAGES:
            raise JobError(
                f"{where}: {key} is in {module.split('.')[0]!r}, a package of fedlearn",
                hint="rename the application's package",
            )
    return Application(
        name=name,
        version=version,
        serverapp=apps["serverapp"],
        clientapp=apps["clientapp"],
        defaults=MappingProxyType(defaults),
        needs=tuple(_distribution(item, where) for item in needed),
    )


def _distribution(requirement: object, where: str) -> str:
    """Return the name at the start of a requirement (PEP 508)."""
    found = _REQUIREMENT.match(requirement) if isinstance(requirement, str) else None
    if found is None:
        raise JobError(
            f"{where}: project.dependencies holds {ascii(requirement)[:80]}, not a requirement",
            hint='for example: dependencies = ["flwr>=1.41", "torch>=2.4"]',
        )
    return found[0]


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables become dotted keys, as in Flower."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
