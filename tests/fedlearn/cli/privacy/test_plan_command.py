"""``fedlearn privacy plan`` prints a plan for people and for programs."""

from __future__ import annotations

import json
import subprocess

from fedlearn.local.federation import program


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program("fedlearn")), "privacy", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_plan_is_a_table_and_one_json_object() -> None:
    arguments = ("--epsilon", "3", "--delta", "1e-5", "--rounds", "50", "--sites", "100")
    shown = _run(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("noise_multiplier = 10.6: epsilon 2.9")
    assert "signal to noise" in shown.stdout
    document = json.loads(_run(*arguments, "--json").stdout)
    assert document["schema"] == "fedlearn privacy plan/1"
    assert document["noise_multiplier"] == 10.6
    assert document["utility"][0]["sites"] == 100


def test_an_epsilon_that_cannot_be_met_is_an_error_with_a_hint() -> None:
    found = _run("--epsilon", "1e-9", "--delta", "1e-14", "--rounds", "1000000", "--json")
    assert found.returncode == 1
    error = json.loads(found.stdout)["error"]
    assert "no amount of noise" in error["message"]
    assert "at least" in error["hint"]
