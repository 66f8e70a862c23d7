"""``fedlearn audit``: result and figure of each audit, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedlearn.cli import main
from fedlearn.privacy.chain import GridNoise
from tests.fedlearn.audit.conftest import MakeTarget, make_target

__all__ = ["make_target"]

EXAMPLE = Path(__file__).parents[3] / "examples/existing-flower-app"


def audit(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, words)])


def printed(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_the_audit_of_an_example_is_written_and_printed(tmp_path: Path) -> None:
    job = tmp_path / "job"
    shutil.copytree(EXAMPLE, job, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path / "out"
    words = ("inversion", job / "job.toml", "--attack", "analytic", "--json")
    done = audit(*words, "--out", out)
    assert done.exit_code == 0, done.output
    found = printed(done)
    assert found["schema"] == "fedlearn audit inversion/1"
    assert found["forms"][0]["recovered"] == [True]
    kept = json.loads((out / "result.json").read_text())
    assert found == {**kept, "folder": str(out), "schema": found["schema"]}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    again = audit(*words, "--out", tmp_path / "again")
    assert printed(again)["forms"] == found["forms"]
    assert (tmp_path / "again/figure.png").read_bytes() == (out / "figure.png").read_bytes()
    refused = audit(*words, "--out", out)
    assert refused.exit_code == 1
    assert "exists" in printed(refused)["error"]["message"]


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (("membership", "--shadows", "4", "--format", "svg"), "LiRA: AUC"),
        (
            ("poisoning", "--rules", "fedavg", "--attacks", "sign-flip", "--format", "pdf"),
            "fedavg: ",
        ),
        (("backdoor", "--rules", "fedavg", "--attackers", "0.25"), "fedavg: "),
        (("epsilon", "--canaries", "8"), "the job claims nothing"),
    ],
)
def test_each_audit_draws_its_figure(
    make_target: MakeTarget, tmp_path: Path, words: tuple[str, ...], verdict: str
) -> None:
    target = make_target(sites=4, rows=20, tests=10, rounds=1)
    done = audit(words[0], target.path, *words[1:], "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert verdict in done.stdout
    assert "attestation, TLS and sealing were left out" in done.stdout
    kind = words[words.index("--format") + 1] if "--format" in words else "png"
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert (tmp_path / f"out/figure.{kind}").read_bytes().startswith(start)


def test_a_refuted_claim_ends_with_status_2(
    make_target: MakeTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GridNoise, "apply", lambda self, delta: delta)
    private = (
        '[privacy]\nmechanism = "central-gaussian"\nclip = 0.5\nnoise_multiplier = 4.0\n'
        "epsilon = 50.0\ndelta = 1e-5\n"
    )
    target = make_target(sites=2, rows=8, rounds=1, more=private)
    done = audit("epsilon", target.path, "--canaries", "50", "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "THE CLAIM IS REFUTED" in done.stdout
    assert json.loads((tmp_path / "out/result.json").read_text())["refuted"] is True


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("poisoning", "--rules", "magic"), "'magic' is no aggregation rule"),
        (("poisoning", "--attackers", "1.0"), "--attackers"),
        (("poisoning", "--strength", "alie"), "--strength"),
        (("membership", "--shadows", "5"), "an even number"),
        (("epsilon", "--kind", "examples", "--canaries", "900"), "canaries are to be made"),
        (("inversion", "--site", "nowhere"), "--site"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(
    make_target: MakeTarget, tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    target = make_target(sites=2, rounds=1)
    done = audit(words[0], target.path, *words[1:], "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert text in done.output
    assert not (tmp_path / "out").exists()


def test_a_missing_job_is_named(tmp_path: Path) -> None:
    done = audit("poisoning", tmp_path / "job.toml")
    assert done.exit_code == 1
    assert "does not exist" in done.output
