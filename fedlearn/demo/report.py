"""The report of a run: one page, two pictures, and JSON for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedlearn.demo.outcome import DemoOutcome
from fedlearn.demo.page import page
from fedlearn.demo.plots import rounds_png, sites_png

__all__ = ["FILES", "write_report"]

FILES = ("report.html", "rounds.png", "sites.png", "result.json")
"""What :func:`write_report` writes."""


def write_report(outcome: DemoOutcome, folder: Path) -> dict[str, Path]:
    """Write the report below ``folder`` and return the files by name.

    All content is made before a file is written, and each file is replaced atomically, so that no
    incomplete file is left.

    :raises ConfigError: when matplotlib is not installed.
    """
    contents = {
        "report.html": page(outcome).encode(),
        "rounds.png": rounds_png(outcome),
        "sites.png": sites_png(outcome),
        "result.json": (json.dumps(outcome.to_json(), indent=2, allow_nan=False) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, content in contents.items():
        path = folder / name
        fresh = folder / f".{name}.new"
        fresh.write_bytes(content)
        os.replace(fresh, path)  # noqa: PTH105
        written[name] = path
    return written
