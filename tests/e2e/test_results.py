"""A job's results from a machine with a login or an owner's key only, while jobs run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedlearn.identity.login import OperatorLogin, ca_pin
from fedlearn.local.federation import program
from server.config import ServerConfig
from tests.harness.federation import MARKER, FederationHarness

pytestmark = pytest.mark.e2e


class OperatorHome:
    """A machine of its own: an empty home, and nothing of the coordinator's disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def run(self, *words: str | Path, status: int = 0) -> str:
        kept = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        done = subprocess.run(
            [str(program("fedlearn")), *map(str, words)],
            cwd=self.folder,
            env={**kept, "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr


def test_an_operator_and_an_owner_get_the_model_home(
    shared: FederationHarness, tmp_path: Path
) -> None:
    shared.run("fetched")
    alice, owner = OperatorHome(tmp_path / "alice"), OperatorHome(tmp_path / "owner")
    shutil.copytree(shared.federation.login, alice.folder / ".config/fedlearn/operator")
    for home in (alice, owner):
        shutil.copy(shared.owner.file, home.folder / "owner.pem")
        (home.folder / "owner.pem").chmod(0o600)
    pin = ca_pin(OperatorLogin.load(shared.federation.login).ca)
    listens = ServerConfig.load(shared.server_toml).listen
    gate = ("--coordinator", listens.gate, "--ca-pin", pin)

    listed = json.loads(alice.run("model", "list", "fetched", "--json"))["models"]
    assert {found["model"] for found in listed} == {"fetched", "fetched.files"}
    alice.run("model", "download", "fetched")
    alice.run("model", "export", "fetched.flsw", "--key", "owner.pem", "--out", "w.safetensors")
    np.testing.assert_array_equal(load_file(alice.folder / "w.safetensors")["marker"], MARKER)
    alice.run("job", "files", "fetched", "--key", "owner.pem", "--out", "files")
    assert (alice.folder / "files/final/marker").read_bytes() == MARKER.tobytes()

    # The owner has no login at all.
    mine = json.loads(owner.run("model", "list", "--key", "owner.pem", *gate, "--json"))["models"]
    assert [found for found in mine if found["job"] == "fetched"] == listed
    owner.run("model", "download", "fetched", "--key", "owner.pem", *gate)
    assert (owner.folder / "fetched.flsw").read_bytes() == (
        alice.folder / "fetched.flsw"
    ).read_bytes()
    opened = owner.run("model", "open", "fetched.flsw", "--key", "owner.pem", "--ca-pin", pin)
    assert "every chunk authentic" in opened
    assert "no operator login here" in owner.run("model", "list", status=1)
    other = owner.run("model", "open", "fetched.flsw", "--key", "owner.pem", status=1)
    assert "no option states who must have sealed the file" in other

    # What the ledger states is the same as on the coordinator's disk, and has to go on from there.
    assert json.loads(alice.run("ledger", "verify", "--json"))["intact"] is True
    shared.run("fetched-later", sites=["site-a"])
    again = json.loads(alice.run("ledger", "verify", "--json"))
    assert again["head_checked"] is True
    assert again["former_head"] is not None
    contributions = ("ledger", "contributions", "--job", "fetched", "--json")
    there = shared.command("fedlearn", *contributions, "--state", shared.state)
    assert alice.run(*contributions) == there.stdout


def test_export_and_rotation_while_a_job_runs(shared: FederationHarness, tmp_path: Path) -> None:
    job = shared.job("rotated", rounds=2000, config={"wait": 0.05}).submit()
    job.wait_for("round.finished", 2)
    unlock = ("--state", shared.state, "--config", shared.server_toml)
    out = tmp_path / "w.safetensors"
    shared.command("fedlearn", "model", "rotate", "rotated", *unlock)
    shared.command("fedlearn", "model", "export", "rotated", "--out", out, *unlock)
    before = {path.name for path in shared.sealed("rotated")}
    shared.command("fedlearn", "model", "rotate", "rotated", *unlock)
    finished = len(job.of("round.finished"))
    job.wait_for("round.finished", finished + 2)
    assert job.status.open
    shared.operator.cancel_job("rotated")

    # Every round that began is there, once, and with every site.
    rounds = job.of("round.finished")
    assert [event.round for event in rounds] == list(range(1, len(rounds) + 1))
    assert {event.sites for event in rounds} == {len(shared.sites)}
    assert job.of("update.rejected") == job.of("client.quarantined") == []
    assert before.isdisjoint({path.name for path in shared.sealed("rotated")})
    np.testing.assert_array_equal(load_file(out)["marker"], MARKER)
    (export,) = job.ledger("export")
    assert export["to"] == str(out)
    assert [entry["change"] for entry in job.ledger("model")] == ["rotated", "rotated"]
    np.testing.assert_array_equal(shared.weights("rotated")["marker"], MARKER)
    shared.command("fedlearn", "model", "verify", "rotated", *unlock)
