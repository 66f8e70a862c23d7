"""A chart for a fleet: rendered by real helm, wrapped for a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.harness.charts import Render

ROOT = Path(__file__).resolve().parents[2]


def _wrap(text: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/manifest_work.py"), "--cluster", "hospital-a", *more],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_hub_installs_what_helm_would(render: Render) -> None:
    rendered = list(render("fedlearn-edge").objects)
    done = _wrap(yaml.safe_dump_all(rendered), "--namespace", "fedlearn")
    assert done.returncode == 0, done.stderr
    work = json.loads(done.stdout)
    assert work["kind"] == "ManifestWork"
    assert work["metadata"]["namespace"] == "hospital-a"
    found = work["spec"]["workload"]["manifests"]
    kinds = [one["kind"] for one in found]
    assert kinds[:2] == ["Namespace", "Namespace"]
    assert {one["metadata"]["name"] for one in found[:2]} == {"fedlearn", "fedlearn-clients"}
    wanted = {
        (one["kind"], one["metadata"]["name"])
        for one in rendered
        if "helm.sh/hook" not in (one["metadata"].get("annotations") or {})
    }
    assert {(one["kind"], one["metadata"]["name"]) for one in found[1:]} >= wanted - {
        ("Namespace", "fedlearn-clients")
    }
    assert "Deployment" in kinds
    assert "Pod" not in kinds
    wide = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
    assert all("namespace" in one["metadata"] for one in found if one["kind"] not in wide)
    assert all("namespace" not in one["metadata"] for one in found if one["kind"] in wide)


def test_a_token_does_not_go_through_a_hub(render: Render) -> None:
    token = {"enrollment": {"existingSecret": "", "token": "fedlearn-join-x"}}
    done = _wrap(yaml.safe_dump_all(list(render("fedlearn-edge", token).objects)))
    assert done.returncode == 1
    assert "would be readable at the hub" in done.stderr
    assert "enrollment.existingSecret" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("text", ["", "{", "a: 1", "- 1"])
def test_what_are_no_manifests_is_refused(text: str) -> None:
    done = _wrap(text)
    assert done.returncode == 1
    assert done.stderr.startswith("manifest_work: ")
