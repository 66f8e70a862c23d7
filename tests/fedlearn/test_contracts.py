"""The contracts between packages cover every module of the ground floor."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_ground_contract_names_every_module_of_the_ground() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    named = next(c for c in contracts if c["id"] == "ground")["source_modules"]
    package = ROOT / "fedlearn"
    found = {
        f"fedlearn.{path.stem}"
        for path in package.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert set(named) == found - {"fedlearn.cli"}
