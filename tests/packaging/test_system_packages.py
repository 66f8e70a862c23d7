"""tools/install-system-packages.sh: what it installs, and what it states where it cannot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/install-system-packages.sh"


def run(
    folder: Path, *arguments: str, user: int = 0, installed: str = "", apt: int = 0
) -> tuple[int, str, str]:
    """Run the script on a machine that these programs pretend to be; return also what apt got."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    log = folder / "apt.log"
    for name, body in {
        "dpkg-query": f'case " {installed} " in *" $3 "*) echo install ok installed;; esac',
        "id": f"echo {user}",
        "apt-get": f'echo "$@" >>{log}; exit {apt}',
        "chromium": "",
        "npm": "",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
    )
    return done.returncode, done.stderr, log.read_text() if log.exists() else ""


def test_the_demo_gets_the_software_tpm_where_it_can(tmp_path: Path) -> None:
    status, text, apt = run(tmp_path, "demo")
    assert (status, text) == (0, "")
    assert apt.splitlines()[-1] == "install -y -qq --no-install-recommends swtpm tpm2-tools"


def test_what_is_installed_is_left_alone(tmp_path: Path) -> None:
    assert run(tmp_path, "demo", installed="swtpm tpm2-tools") == (0, "", "")


@pytest.mark.parametrize(
    ("user", "apt", "why"), [(1000, 0, "needs root and apt"), (0, 100, "apt-get failed")]
)
def test_a_demo_without_a_software_tpm_states_what_it_runs_on(
    tmp_path: Path, user: int, apt: int, why: str
) -> None:
    status, text, _ = run(tmp_path, "demo", user=user, apt=apt)
    assert status == 0
    assert text == (
        f"not installed: swtpm tpm2-tools ({why}); the demo runs on sample evidence, "
        "which proves nothing\n"
    )


def test_pods_need_their_packages(tmp_path: Path) -> None:
    status, text, _ = run(tmp_path, "pods", user=1000)
    assert status == 1
    assert "not installed: containerd" in text
    assert run(tmp_path, user=1000)[0] == 0


def test_an_unknown_set_is_refused(tmp_path: Path) -> None:
    status, text, apt = run(tmp_path, "everything")
    assert (status, apt) == (2, "")
    assert "not a set of packages: everything (there are: demo, pods)" in text
