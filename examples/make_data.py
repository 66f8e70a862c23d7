"""Writes the data of the examples: packaged tables of scikit-learn, and invented ones.

    python examples/make_data.py

What it writes is committed, so that an example runs without it. The same release of numpy writes
the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

HERE = Path(__file__).resolve().parent


def write(root: Path = HERE) -> None:
    """Write the data of every example below ``root``."""
    tumours(root / "quickstart/data", ("north", "south"))
    digits(root / "existing-flower-app/data")
    one_bad_site(root / "custom-strategy")
    opposite_heads(root / "personalised-layers/data")
    private_tumours(root / "differential-privacy")
    rings(root / "xgboost/data")
    tokens(root / "lora/data")


def tumours(folder: Path, sites: tuple[str, ...]) -> None:
    """Ten standardised measurements of 569 tumours, and whether each is malignant."""
    table, names = _tumours()
    for number, site in enumerate(sites):
        _table(folder / site / "data.csv", names, table[number :: len(sites)])


def private_tumours(folder: Path) -> None:
    """The same tumours: 440 at four sites, and 129 that are public, in the app."""
    table, names = _tumours()
    _json(folder / "app/private_app/public.json", names, table[:129])
    for number, site in enumerate(("east", "north", "south", "west")):
        _table(folder / "data" / site / "data.csv", names, table[129 + number :: 4])


def digits(folder: Path) -> None:
    """Images of 8 by 8 pixels of handwritten digits, 0 to 16, and the digit."""
    pixels, labels = load_digits(return_X_y=True)
    table = np.column_stack([pixels, labels])[:600].astype(int)
    for number, site in enumerate(("site-a", "site-b")):
        _lines(folder / site / "digits.csv", table[number::2])


def one_bad_site(folder: Path) -> None:
    """A linear rule with noise at three sites; at a fourth the labels are the opposite."""
    draw = np.random.default_rng(1)
    rule = np.array([1.5, -2.0, 1.0, 0.5, -1.0])
    names = [*(f"x{number}" for number in range(5)), "label"]

    def rows(count: int) -> np.ndarray:
        features = draw.normal(size=(count, 5))
        labels = features @ rule + draw.normal(scale=0.5, size=count) > 0
        return np.column_stack([features, labels])

    _json(folder / "app/median_app/public.json", names, rows(200))
    for site in ("site-a", "site-b", "site-c", "site-d"):
        table = rows(150)
        if site == "site-d":
            table[:, -1] = 1 - table[:, -1]
            table[:, :-1] *= 10
        _table(folder / "data" / site / "data.csv", names, table)


def opposite_heads(folder: Path) -> None:
    """Two sites that need the same features and opposite answers."""
    draw = np.random.default_rng(2)
    names = [*(f"x{number}" for number in range(8)), "label"]
    body, head = draw.normal(size=(8, 4)), draw.normal(size=4)
    for site, sign in (("site-a", 1), ("site-b", -1)):
        features = draw.normal(size=(400, 8))
        labels = sign * (np.tanh(features @ body) @ head) > 0
        _table(folder / site / "data.csv", names, np.column_stack([features, labels]))


def rings(folder: Path) -> None:
    """A ring of one class around the other; each site sees one sector of it."""
    draw = np.random.default_rng(3)
    for number, site in enumerate(("site-a", "site-b", "site-c")):
        angle = draw.uniform(0, 2 / 3 * np.pi, size=200) + number * 2 / 3 * np.pi
        label = draw.integers(0, 2, size=200)
        radius = 1 + label + draw.normal(scale=0.35, size=200)
        noise = draw.normal(size=(200, 2))
        table = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), noise, label])
        _table(folder / site / "data.csv", ["x", "y", "u", "v", "label"], table)


def tokens(folder: Path) -> None:
    """Sentences of 16 tokens; the label is which of two groups of tokens is more frequent."""
    draw = np.random.default_rng(4)
    for site in ("site-a", "site-b"):
        table = draw.integers(1, 32, size=(400, 16))
        first = (table < 9).sum(axis=1)
        second = (table > 23).sum(axis=1)
        kept = table[first != second][:300]
        label = ((kept < 9).sum(axis=1) > (kept > 23).sum(axis=1)).astype(int)
        _lines(folder / site / "tokens.csv", np.column_stack([kept, label]))


def _tumours() -> tuple[np.ndarray, list[str]]:
    found = load_breast_cancer()
    features = found.data[:, :10]
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    names = [name.replace("mean ", "").replace(" ", "_") for name in found.feature_names[:10]]
    return np.column_stack([features, 1 - found.target]), [*names, "malignant"]


def _table(path: Path, names: list[str], table: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(names)]
    lines += [",".join(f"{value:.3f}" for value in row[:-1]) + f",{int(row[-1])}" for row in table]
    path.write_text("\n".join(lines) + "\n")


def _json(path: Path, names: list[str], table: np.ndarray) -> None:
    """Write a table that is part of an app: Flower puts no CSV file into a bundle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps([round(value, 3) for value in row]) for row in table.tolist())
    path.write_text(f'{{"columns": {json.dumps(names)}, "rows": [\n{rows}\n]}}\n')


def _lines(path: Path, table: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in table.tolist()) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
