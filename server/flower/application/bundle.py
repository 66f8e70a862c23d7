"""Packs an application folder into one file, with the same bytes on every machine."""

from __future__ import annotations

from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from fedlearn.app.checks import check_bundle, check_folder
from fedlearn.app.flower_pin import settle_log
from fedlearn.errors import JobError

__all__ = ["build"]

settle_log()


def build(folder: Path) -> bytes:
    """Return the folder as a Flower app bundle (FAB); equal folders give equal bytes.

    Flower's rules select the files (``.gitignore``, ``fab-include``, ``fab-exclude``).

    :raises JobError: when the folder is not an application that may run here.
    """
    check_folder(folder)
    try:
        bundle: bytes = build_fab_from_disk(folder)
    except (ValueError, OSError) as error:
        raise JobError(f"{folder}: cannot be bundled: {error}") from error
    check_bundle(bundle, where=str(folder))
    return bundle
