"""A job to audit: handwritten digits at a few sites."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedlearn.audit.target import AuditTarget

APP = Path(__file__).parents[2] / "apps/audited"
AUDIT = """\
model = "audited_app.task:new_model"
scale = 0.0625
image = [8, 8]
rate_key = "learning-rate"
"""

MakeTarget = Callable[..., AuditTarget]


@pytest.fixture
def make_target(tmp_path: Path) -> MakeTarget:
    """Return a function that writes a job with data, and reads it as an audit does."""

    def make(
        *,
        sites: int = 5,
        rows: int = 40,
        tests: int = 20,
        rounds: int = 2,
        more: str = "",
        config: str = "",
        audit: str = AUDIT,
        wrong: float = 0.0,
    ) -> AuditTarget:
        folder = tmp_path / "job"
        shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
        names = [f"site-{number}" for number in range(sites)]
        (folder / "job.toml").write_text(
            f'name = "audited"\napp = "app"\nrounds = {rounds}\nsites = {names}\n'.replace("'", '"')
            + 'policy = "policy.toml"\nseed = 1\n[evaluate]\nmetric = "accuracy"\n'
            + f"[config]\n{config}\n{more}\n"
        )
        (folder / "audit.toml").write_text(audit)
        x, y = load_digits(return_X_y=True)
        for number, name in enumerate(names):
            mine = np.arange(number, len(y), sites)
            assert len(mine) >= rows + tests
            site = folder / "data" / name
            site.mkdir(parents=True)
            for file, part in (("data", mine[:rows]), ("test", mine[rows : rows + tests])):
                labels = y[part].copy()
                if file == "data":  # some labels are wrong, which only memory can reproduce
                    labels[: round(wrong * rows)] = (labels[: round(wrong * rows)] + 5) % 10
                np.savez(site / f"{file}.npz", x=x[part], y=labels)
        return AuditTarget(folder)

    return make
