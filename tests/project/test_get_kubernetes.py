"""The script that brings a real Kubernetes: what it costs is stated, and what it lacks is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools/get-kubernetes.sh"


def test_the_page_states_what_a_build_from_source_takes() -> None:
    # Measured with an empty archive folder: 5.3 minutes of processor time, 3.2 GB at its largest.
    stated = ("about six minutes", "4 GB below")
    header = " ".join(SCRIPT.read_text().partition("set -euo")[0].replace("#", "").split())
    page = " ".join((ROOT / "docs/how-to/kubernetes.md").read_text().split())
    for figure in stated:
        assert figure in header
        assert figure in page


def test_without_an_archive_and_without_apt_the_message_names_what_to_do(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "cat", "chmod", "dirname", "install", "mkdir", "mktemp", "mv", "rm"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    result = subprocess.run(
        [str(programs / "bash"), str(SCRIPT)],
        env={
            "PATH": str(programs),
            "TMPDIR": str(tmp_path),
            "KUBEBUILDER_ASSETS": str(tmp_path / "assets"),
            "FEDLEARN_KUBERNETES_ARCHIVES": str(tmp_path / "none"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert f"no archive in {tmp_path / 'none'} and no apt here" in result.stderr
    assert "set KUBEBUILDER_ASSETS to a folder that has kube-apiserver" in result.stderr
    assert not list((tmp_path / "assets").iterdir())
    assert not list(tmp_path.glob("get-kubernetes.*"))
