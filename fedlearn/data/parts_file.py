"""``parts.json``: what is in a folder of divided data, beside the folders of its sites.

The page is docs/how-to/split-data.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn import config
from fedlearn.errors import ConfigError

__all__ = ["NAME", "PartCounts", "PartsFile", "read", "write"]

NAME: Final = "parts.json"
_SCHEMA: Final = "fedlearn data parts/1"
_MAX_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCounts:
    """One site: its examples, how many of each class (training and test together), its files.

    ``bytes`` has the size of each file in the site's folder, by name.
    """

    train: int
    test: int
    labels: tuple[int, ...]
    bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsFile:
    """A folder of divided data.

    ``digest``       SHA-256 of everything that the folder's content follows from, hexadecimal
    ``setup``        the table ``[data]`` that it was made by
    ``classes``      names of the labels; empty where labels are not classes
    ``features``     names of the features; empty for images
    ``server_test``  examples in ``test.npz`` beside the sites' folders; 0 for none
    """

    digest: str
    setup: Mapping[str, Any]
    seed: int
    classes: tuple[str, ...]
    features: tuple[str, ...]
    server_test: int
    parts: Mapping[str, PartCounts]


def write(parts: PartsFile, folder: Path) -> None:
    """Write ``parts.json`` into ``folder``."""
    body = {"schema": _SCHEMA, **asdict(parts)}
    (folder / NAME).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> PartsFile:
    """Return what is in a folder.

    :raises ConfigError: when it has no ``parts.json``, or the file is damaged or of another
        version.
    """
    path = folder / NAME
    content = config.file_bytes(path, limit=_MAX_BYTES, made_by="fedlearn data split")
    try:
        body = json.loads(content)
        if body["schema"] != _SCHEMA:
            raise ConfigError(
                f"is of the form {body['schema']!r}; {_SCHEMA!r} is expected", where=str(path)
            )
        parts = {
            str(site): PartCounts(
                train=_count(part["train"]),
                test=_count(part["test"]),
                labels=tuple(map(_count, part["labels"])),
                bytes={str(name): _count(size) for name, size in part["bytes"].items()},
            )
            for site, part in body["parts"].items()
        }
        found = PartsFile(
            digest=str(body["digest"]),
            setup=dict(body["setup"]),
            seed=_count(body["seed"]),
            classes=tuple(map(str, body["classes"])),
            features=tuple(map(str, body["features"])),
            server_test=_count(body["server_test"]),
            parts=parts,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"is damaged or cut short: {type(error).__name__}: {error}",
            where=str(path),
            hint="divide the data again into a new folder",
        ) from None
    if any(len(part.labels) != len(found.classes) for part in parts.values()):
        raise ConfigError("the counts of a site are not those of the classes", where=str(path))
    return found


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0")
    return value
