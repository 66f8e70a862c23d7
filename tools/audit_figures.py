"""Draws the figures of docs/how-to/audit.md: writes two jobs, and audits them by the command line.

    python tools/audit_figures.py docs/assets

The jobs are the app of examples/existing-flower-app on scikit-learn's digits at ten sites, without
and with [privacy]. All is seeded: the same machine and packages draw the same bytes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.datasets import load_digits

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "examples/existing-flower-app"
SITES: Final = 10
PRIVACY: Final = """
[privacy]
mechanism = "central-gaussian"
clip = 0.5
noise_multiplier = 2.0
epsilon = 50.0
delta = 1e-5
"""

COMMANDS: Final = {
    "inversion": "inversion digits/job.toml --batch 4 --clip 0.5 --noise 0.01 --restarts 2",
    "membership": "membership digits/job.toml --shadows 16",
    "epsilon": "epsilon private/job.toml --canaries 1000 --rounds 3",
    "poisoning": "poisoning digits/job.toml --attackers 0.3 "
    "--rules fedavg,fedmedian,fedtrimmedavg,krum,geomedian,normclip,fltrust",
    "backdoor": "backdoor digits/job.toml --rules fedavg,normclip,fedmedian,krum --start 20",
}
"""The commands as the page shows them."""


def write_job(folder: Path, more: str = "") -> None:
    """Write the job of ten sites, with data."""
    shutil.copytree(EXAMPLE / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLE / "audit.toml", folder)
    names = [f"site-{number}" for number in range(SITES)]
    listed = ", ".join(f'"{name}"' for name in names)
    (folder / "job.toml").write_text(
        f'name = "digits"\napp = "app"\nrounds = 20\nsites = [{listed}]\npolicy = "policy.toml"\n'
        'seed = 1\n[evaluate]\nmetric = "accuracy"\n[strategy]\nname = "fedavg"\n'
        "[config]\nlearning-rate = 0.1\n" + more
    )
    pixels, labels = load_digits(return_X_y=True)
    table = np.column_stack([pixels, labels]).astype(int)
    for number, name in enumerate(names):
        (folder / "data" / name).mkdir(parents=True)
        lines = (",".join(map(str, row)) for row in table[number::SITES].tolist())
        (folder / "data" / name / "digits.csv").write_text("\n".join(lines) + "\n")


def draw(target: Path) -> None:
    """Run each command and keep its figure below ``target``."""
    with tempfile.TemporaryDirectory() as made:
        base = Path(made)
        write_job(base / "digits")
        write_job(base / "private", PRIVACY)
        for name, command in COMMANDS.items():
            words = ["fedlearn", "audit", *command.split(), "--out", f"audits/{name}"]
            print(" ".join(words), flush=True)
            program = [sys.executable, "-c", "from fedlearn.cli import main; main()"]
            subprocess.run([*program, *words[1:]], check=True, cwd=base)
            shutil.copy(base / "audits" / name / "figure.png", target / f"audit-{name}.png")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/assets")
