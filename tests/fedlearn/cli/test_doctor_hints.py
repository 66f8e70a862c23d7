"""What the doctor advises works: a reader who follows each hint ends with a party that runs.

The doctor, ``check`` and ``run`` agree on what keeps a party from working.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedlearn.cli import main
from fedlearn.identity.join import JoinToken
from tests.harness.listeners import DeploymentListeners

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
COMMAND = re.compile(r"(?:^|: |`)((?:fedlearn|chmod|\(umask)[^`]+)`?")
MOST = 12


def shell(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=home,
        env={"HOME": str(home), "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def failed(home: Path, *flags: str) -> list[dict[str, str]]:
    """Return the checks that failed; those of the machine itself are the same everywhere."""
    with contextlib.chdir(home):
        done = CliRunner().invoke(main, ["doctor", "--json", *flags])
    found = [check for check in json.loads(done.stdout)["checks"] if check["level"] == "fail"]
    assert bool(found) is (done.exit_code != 0)
    return found


def follow(home: Path, flags: tuple[str, str], fills: dict[str, str]) -> list[str]:
    """Give the commands of the hints until nothing fails; return them."""
    given: list[str] = []
    while (found := failed(home, *flags)) and len(given) < MOST:
        for check in found:
            command = COMMAND.search(check["mend"])
            assert command, f"{check}: the hint has no command"
            text = command[1]
            for name, value in fills.items():
                text = re.sub(rf"\b{re.escape(name)}\b", value, text)
            done = shell(text, home)
            assert done.returncode == 0, f"{check}\n{text}\n{done.stdout}{done.stderr}"
            given.append(text)
    assert not found, found
    return given


def test_a_coordinator_that_follows_the_hints_can_start(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(
        'state = "state"\ntrust_domain = "x.example"\n'
        '[listen]\ngate = "127.0.0.1:0"\ncontrol = "127.0.0.1:0"\nfleet = "127.0.0.1:0"\n'
        '[keys]\nprotect = ["passphrase", "recovery-key"]\npassphrase_file = "secret"\n'
        'recovery_key = "recovery.pub.pem"\n[attester]\nkind = "insecure-sample"\n'
    )
    assert (
        "`fedlearn-server init`" in shell("fedlearn-server run --config none.toml", tmp_path).stderr
    )
    assert shell("fedlearn operator request alice", tmp_path).returncode == 0
    csr = ".config/fedlearn/operator/operator.csr"
    given = follow(tmp_path, ("--server", "server.toml"), {"operator.csr": csr})
    assert [text.split()[0] for text in given].count("fedlearn-server") == 1
    done = shell("fedlearn-server check --json", tmp_path)
    assert done.returncode == 0, done.stderr
    digest = shell("fedlearn evidence development-key state/insecure-development.key", tmp_path)
    assert json.loads(done.stdout)["insecure_sample_key"] == digest.stdout.strip()


def test_a_site_that_follows_the_hints_can_start(
    tmp_path: Path, listeners: DeploymentListeners
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    site = 'state = "state"\n[data.x]\npath = "data"\n[accept]\nother_bundles = "ask"\n'
    (tmp_path / "site.toml").write_text(site + '[attester]\nkind = "insecure-sample"\n')
    made = listeners.deployment.sites.invitations.create_token("site-c", needs_approval=False)
    token = JoinToken(
        address=listeners.gate, site=made.site, ca_pin=made.ca_pin, secret=made.secret
    )
    (tmp_path / "token").write_text(token.encode())
    for command in ("check", "run"):
        refused = shell(f"fedlearn-edge {command}", tmp_path)
        assert refused.returncode == 1
        assert "no site is enrolled here" in refused.stderr
    given = follow(tmp_path, ("--edge", "site.toml"), {"FILE": "token", "DIR": "state"})
    assert any("site enroll" in text for text in given)
    assert any("development-key" in text for text in given)
    checked = shell("fedlearn-edge check --json", tmp_path)
    assert checked.returncode == 0, checked.stderr
    digest = shell("fedlearn evidence development-key state/insecure-development.key", tmp_path)
    assert json.loads(checked.stdout)["insecure_sample_key"] == digest.stdout.strip()

    (tmp_path / "state/insecure-development.key").unlink()
    assert [check["name"] for check in failed(tmp_path, "--edge", "site.toml")] == ["attester"]
    for command in ("check", "run"):
        refused = shell(f"fedlearn-edge {command}", tmp_path)
        assert refused.returncode == 1
        assert "the development key does not exist" in refused.stderr
        assert "fedlearn evidence development-key --new" in refused.stderr


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_a_tee_the_agent_and_the_doctor_refuse_alike(
    tmp_path: Path, listeners: DeploymentListeners, command: str
) -> None:
    """On a machine with a TEE or a TPM both accept it."""
    (tmp_path / "site.toml").write_text('state = "state"\n')
    made = listeners.deployment.sites.invitations.create_token("site-c", needs_approval=False)
    token = JoinToken(
        address=listeners.gate, site=made.site, ca_pin=made.ca_pin, secret=made.secret
    )
    (tmp_path / "token").write_text(token.encode())
    enrolled = shell("fedlearn site enroll --token-file token --state state", tmp_path)
    assert enrolled.returncode == 0, enrolled.stderr
    found = failed(tmp_path, "--edge", "site.toml")
    if not found:
        assert shell("fedlearn-edge check", tmp_path).returncode == 0
        return
    assert [check["name"] for check in found] == ["attester"]
    assert 'kind = "insecure-sample"' in found[0]["mend"]
    refused = shell(f"fedlearn-edge {command}", tmp_path)
    assert refused.returncode == 1
    assert 'kind = "insecure-sample"' in refused.stderr
