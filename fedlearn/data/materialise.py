"""Writes divided data: one folder for each site, as a site has it in the field.

::

    parts.json          what is where (fedlearn.data.parts_file)
    test.npz            x and y for the ServerApp, where it was asked for
    client-0000/
        data.npz        x and y; ids as well for the partition natural
        test.npz        the test data of the site, of the same form
    client-0001/
        ...

With ``format = "csv"`` or ``"parquet"`` a site has ``data.csv`` and ``test.csv``, with the columns
of the source. A folder appears under its name when all of it is written.

The pages are docs/how-to/split-data.md and docs/adr/0045-data.md.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from attestation.durable import rename_durably
from fedlearn import config, extras
from fedlearn.data import parts_file
from fedlearn.data.division import Division, Rows, divide
from fedlearn.data.examples import Examples
from fedlearn.data.partition import MAX_PARTS, noisy
from fedlearn.data.setup import DataSetup
from fedlearn.data.sources import fingerprint, load
from fedlearn.errors import ConfigError

__all__ = ["SERVER_TEST", "load_source", "materialise", "write_new"]

SERVER_TEST: Final = "test.npz"
"""The test data of the ServerApp, beside the folders of the sites."""

_FORM: Final = 1
"""Part of every digest; raised when the same setup gives other files."""

_MAX_CLASSES: Final = 1000
_TEMPORARY: Final = ".part"


def materialise(
    table: DataSetup | Mapping[str, Any],
    root: Path,
    sites: Sequence[str],
    seed: int,
    *,
    base: Path | None = None,
) -> dict[str, Path]:
    """Return the folder of each site, below a folder of ``root`` that is written once.

    That folder is named by a digest of the source's content, the setup, the sites and the seed.
    Where it is there already and whole, nothing is read or written besides. ``test.npz`` for the
    ServerApp is in the parent of the sites' folders. Processes may call this at the same time.

    :param table: the table ``[data]``; relative paths start from ``base``.
    :param seed: where the table has none.
    :raises ConfigError: for a table, a source or a partition that is wrong; nothing was written.
    """
    setup = _setup(table, base)
    _check_sites(sites)
    digest = _digest(setup, sites, seed, fingerprint(setup.source))
    folder = root / digest[:32]
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{folder.name}.lock"):
        if not _is_whole(folder, digest):
            for stale in (folder, *root.glob(f".{folder.name}.*{_TEMPORARY}")):
                shutil.rmtree(stale, ignore_errors=True)
            division = divide(load_source(setup), setup, len(sites), seed=seed)
            _write(division, setup, sites, folder, seed=seed, digest=digest)
    return {site: folder / site for site in sites}


def write_new(
    table: DataSetup | Mapping[str, Any],
    folder: Path,
    sites: Sequence[str],
    seed: int,
    *,
    examples: Examples | None = None,
) -> parts_file.PartsFile:
    """Divide into ``folder``, which must not exist, and return what is in it.

    :param examples: in place of those of the table's source, whose name then counts for nothing.
    :raises ConfigError: when the folder exists or the partition cannot be made; nothing was
        written.
    """
    setup = _setup(table, None)
    _check_sites(sites)
    if folder.exists():
        raise ConfigError(
            "exists", where=str(folder), hint="name another folder; nothing was written"
        )
    if examples is None:
        content, examples = fingerprint(setup.source), load_source(setup)
    else:
        content = _content(examples)
    digest = _digest(setup, sites, seed, content)
    division = divide(examples, setup, len(sites), seed=seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _write(division, setup, sites, folder, seed=seed, digest=digest)


def load_source(setup: DataSetup) -> Examples:
    """Return the examples of a setup's source.

    :raises ConfigError: see :func:`fedlearn.data.sources.load`.
    """
    without = [name for name in (setup.id, setup.group) if name]
    return load(setup.source, label=setup.label, features=setup.features, without=without)


# --- checks ---------------------------------------------------------------------------


def _setup(table: DataSetup | Mapping[str, Any], base: Path | None) -> DataSetup:
    if isinstance(table, DataSetup):
        return table
    return config.read(DataSetup, table, where="[data]", base=base)


def _check_sites(sites: Sequence[str]) -> None:
    if not 1 <= len(sites) <= MAX_PARTS:
        raise ConfigError(f"{len(sites)} sites", hint=f"choose 1 to {MAX_PARTS:,}")
    seen: set[str] = set()
    for site in sites:
        if not config.NAME.fullmatch(site):
            raise ConfigError(f"{site!r} is no name of a site", hint="1 to 63 of a-z, 0-9 and '-'")
        if site in seen:
            raise ConfigError(f"the site {site!r} is named twice")
        seen.add(site)


def _digest(setup: DataSetup, sites: Sequence[str], seed: int, content: str) -> str:
    body = {
        "form": _FORM,
        # The streams of numpy's generators may change with its versions (NEP 19).
        "numpy": np.__version__,
        "setup": {
            **asdict(setup),
            "source": "",
            "seed": seed if setup.seed is None else setup.seed,
        },
        "sites": list(sites),
        "content": content,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _content(examples: Examples) -> str:
    digest = hashlib.sha256()
    arrays = [examples.x, examples.y, *(examples.test or ()), *examples.columns.values()]
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    digest.update(json.dumps([*examples.classes, 0, *examples.columns]).encode())
    return digest.hexdigest()


def _is_whole(folder: Path, digest: str) -> bool:
    """Return whether a folder has every file in the size that it was written in."""
    if not folder.is_dir():
        return False
    try:
        parts = parts_file.read(folder)
        sizes = {
            folder / site / name: size
            for site, part in parts.parts.items()
            for name, size in part.bytes.items()
        }
        server = folder / SERVER_TEST
        return (
            parts.digest == digest
            and all(path.stat().st_size == size for path, size in sizes.items())
            and (not parts.server_test or server.is_file())
        )
    except (ConfigError, OSError):
        return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- writing --------------------------------------------------------------------------


def _write(
    division: Division,
    setup: DataSetup,
    sites: Sequence[str],
    folder: Path,
    *,
    seed: int,
    digest: str,
) -> parts_file.PartsFile:
    examples = division.examples
    seed = seed if setup.seed is None else setup.seed
    if setup.format != "npz" and not examples.columns:
        raise ConfigError(
            f"{examples.name} is no table", key="format", hint='choose the format "npz"'
        )
    classes, numbers = _classes(examples)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{_TEMPORARY}")
    temporary.mkdir(mode=0o700)
    try:
        parts = {}
        for number, (site, rows) in enumerate(zip(sites, division.sites, strict=True)):
            (temporary / site).mkdir(mode=0o700)
            labels = np.sort(examples.y[np.concatenate([rows.train, rows.test])])
            ends = [np.searchsorted(labels, numbers, side=side) for side in ("left", "right")]
            parts[site] = parts_file.PartCounts(
                train=len(rows.train),
                test=len(rows.test),
                labels=tuple(map(int, ends[1] - ends[0])),
                bytes=_write_site(
                    examples, rows, setup, temporary / site, number, len(sites), seed=seed
                ),
            )
        found = parts_file.PartsFile(
            digest=digest,
            setup={key: value for key, value in asdict(setup).items() if value is not None},
            seed=seed,
            classes=classes,
            features=examples.features,
            server_test=_write_server(division, setup, temporary),
            parts=parts,
        )
        parts_file.write(found, temporary)
        rename_durably(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return found


def _classes(examples: Examples) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    """Return the names and the values of the classes; none where labels are not classes."""
    values = np.unique(examples.y)
    if examples.classes and values[-1] < len(examples.classes):
        return examples.classes, np.arange(len(examples.classes))
    if examples.y.dtype.kind == "f" or len(values) > _MAX_CLASSES:
        return (), values[:0]
    return tuple(str(value) for value in values), values


def _write_site(
    examples: Examples,
    rows: Rows,
    setup: DataSetup,
    folder: Path,
    number: int,
    sites: int,
    *,
    seed: int,
) -> dict[str, int]:
    sizes = {}
    for name, chosen in (("data", rows.train), ("test", rows.test)):
        if name == "test" and not setup.test:
            continue
        path = folder / f"{name}.{setup.format}"
        if setup.format == "npz":
            x = examples.x[chosen]
            if setup.partition == "noise":
                stream = int(name == "test")
                x = noisy(x, number, sites, sigma=setup.sigma, seed=seed, stream=stream)
            arrays: dict[str, Any] = {"x": x, "y": examples.y[chosen]}
            if setup.partition == "natural":
                arrays["ids"] = examples.columns[setup.id][chosen]
            np.savez(path, **arrays)
        else:
            _write_table(path, {key: each[chosen] for key, each in examples.columns.items()})
        sizes[path.name] = path.stat().st_size
    return sizes


def _write_table(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        return
    arrow: Any = extras.load("pyarrow", needed_for="the format parquet")
    parquet: Any = extras.load("pyarrow.parquet", needed_for="the format parquet")
    parquet.write_table(
        arrow.table(
            {name: col if col.dtype.kind != "U" else col.tolist() for name, col in columns.items()}
        ),
        path,
    )


def _write_server(division: Division, setup: DataSetup, folder: Path) -> int:
    if not setup.server_test:
        return 0
    examples = division.examples
    x, y = examples.test or (examples.x[division.server], examples.y[division.server])
    # The sites' arrays are float32 with noise; those of the server have the same type and unit.
    np.savez(folder / SERVER_TEST, x=x.astype(np.float32) if setup.partition == "noise" else x, y=y)
    return len(y)
