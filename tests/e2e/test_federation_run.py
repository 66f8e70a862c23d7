"""The happy run, what it leaves behind, and that it computes what it should."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from attestation.evidence import Tee
from fedlearn.cli.demo.proofs import OwnerKey
from fedlearn.errors import FedlearnError
from fedlearn.identity.login import ca_pin
from fedlearn.sandbox import report
from tests.harness.federation import MARKER, FederationHarness, descend

pytestmark = pytest.mark.e2e


def test_a_job_runs_and_leaves_a_sealed_model_and_a_ledger(
    shared: FederationHarness, tmp_path: Path
) -> None:
    job = shared.run("happy")
    kinds = {event.kind for event in job.events()}
    assert kinds >= {"job.started", "client.admitted", "round.finished", "job.finished"}

    # The coordinator's own process has the mask 077; its application is another user all the same.
    lacking = [event.line for event in job.of("log") if "sandbox is not complete" in event.line]
    assert bool(lacking) == (not report().full), lacking

    verified = shared.command("fedlearn", "ledger", "verify", "--state", shared.state, "--json")
    assert json.loads(verified.stdout)["intact"] is True
    reported = shared.command(
        *("fedlearn", "ledger", "contributions", "--state", shared.state),
        *("--job", "happy", "--json"),
    )
    made = json.loads(reported.stdout)["contributions"]
    assert [(c["round"], c["site"]) for c in made] == [
        (number, site) for number in (1, 2, 3) for site in shared.sites
    ]
    for each in made:
        assert each["measurements"]["app"] == hashlib.sha256(shared.bundle).hexdigest()
        assert each["measurements"]["job"] == job.spec.digest().hex()
        assert each["policy"] == job.spec.policy_digest.hex()
        assert each["tee"] == "sample"

    # The owner opens it, a stranger does not; the coordinator's operator may export it.
    newest, out = shared.sealed("happy")[-1], tmp_path / "out.safetensors"
    opened = shared.command("fedlearn", "model", "open", newest, "--key", shared.owner.file)
    pin = ca_pin((shared.state / "ca.pem").read_bytes())
    assert f"signed by the coordinator whose CA is {pin}" in opened.stdout
    stranger = OwnerKey.make(tmp_path / "stranger.pem")
    refused = shared.command("fedlearn", "model", "open", newest, "--key", stranger.file, ok=False)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    shared.command(
        *("fedlearn", "model", "export", newest, "--key", shared.owner.file, "--out", out)
    )
    marker = MARKER.tobytes()[:64]
    assert marker in out.read_bytes()
    np.testing.assert_array_equal(load_file(out)["marker"], MARKER)
    # What the ServerApp wrote is sealed in the same way.
    kept = shared.sealed("happy.files")[-1]
    words = ("fedlearn", "job", "files", kept, "--out", tmp_path / "files", "--key")
    assert shared.command(*words, stranger.file, ok=False).returncode == 2
    shared.command(*words, shared.owner.file)
    assert (tmp_path / "files/final/marker").read_bytes() == MARKER.tobytes()
    # And in the clear it is nowhere: not with the coordinator, not with any site.
    assert shared.plaintext(marker) == []


def test_one_client_gives_what_plain_training_gives(shared: FederationHarness) -> None:
    shared.run("alone", sites=["site-a"])
    weights = np.zeros(4, np.float32)
    for _ in range(3):
        weights = descend(weights, *shared.data["site-a"], 3, 0.1)
    np.testing.assert_array_equal(shared.weights("alone")["weights"], weights)


def test_a_mean_over_sites_is_the_one_computed_by_hand(shared: FederationHarness) -> None:
    """To the bit: the exact sum of the weighted updates, rounded once."""
    from fractions import Fraction

    sites = ["site-a", "site-b"]
    shared.run("halves", sites=sites, rounds=2)
    weights = np.zeros(4, np.float32)
    rows = [len(shared.data[site][1]) for site in sites]
    for _ in range(2):
        parts = [descend(weights, *shared.data[site], 3, 0.1) for site in sites]
        exact = [
            sum(n * Fraction(float(part[i])) for n, part in zip(rows, parts, strict=True))
            / sum(rows)
            for i in range(4)
        ]
        weights = np.array([float(each) for each in exact]).astype(np.float32)
    np.testing.assert_array_equal(shared.weights("halves")["weights"], weights)


def test_two_jobs_at_once_do_not_disturb_each_other(shared: FederationHarness) -> None:
    config = {"wait": 0.3, "noise": 0.25}
    jobs = [shared.job(f"twin-{i}", config=config, seed=9).submit() for i in range(2)]
    jobs.append(shared.job("odd-one", config=config, seed=10).submit())
    for job in jobs:
        job.finish(seconds=90)
    first, second, third = (shared.digest(job.name) for job in jobs)
    assert first == second != third


def _privacy(**more: object) -> dict[str, Any]:
    spec = {
        "mechanism": "central-gaussian",
        "clip": 1.0,
        "noise_multiplier": 2.0,
        "epsilon": 8.0,
        "delta": 1e-5,
    }
    return {**spec, **more}


def test_a_private_job_enters_its_spending_with_all_that_gives_it_meaning(
    shared: FederationHarness,
) -> None:
    job = shared.run("private", rounds=2, privacy=_privacy())
    entries = job.ledger("privacy")
    assert [e["round"] for e in entries] == [1, 2]
    assert 0 < entries[0]["epsilon"] < entries[1]["epsilon"] <= 8.0
    text = json.dumps(entries[1])
    for word in ("delta", "unit", "sampling", "accountant"):
        assert word in text
    assert [entry for entry in job.of("log") if "no loss or metric of a site leaves" in entry.line]
    spent = job.of("privacy.spent")[-1]
    assert (spent.unit, spent.limit) == ("site", 8.0)
    # Each site charged its data with the two updates that left it, and gave back nothing.
    for site in shared.sites:
        shown = shared.command(
            *("fedlearn-edge", "budget", "show", "--json"),
            *("--config", shared.federation.parties[site].config),
        )
        (data,) = json.loads(shown.stdout)["data"]
        (charged,) = [found for found in data["jobs"] if found["name"] == "private"]
        assert (charged["spent"], charged["counted"], charged["bounded"]) == (2, 2, True)
        assert data["epsilon"] == pytest.approx(entries[1]["epsilon"])
    # Noise went into the model, and clipping bounds what one site could do.
    assert not np.array_equal(shared.weights("private")["marker"], MARKER)


def test_a_job_beyond_its_budget_is_refused_and_leaves_nothing(shared: FederationHarness) -> None:
    job = shared.job("beyond", rounds=50, privacy=_privacy(epsilon=1.0))
    with pytest.raises(FedlearnError, match="epsilon"):
        job.submit()
    with pytest.raises(FedlearnError, match="no job 'beyond'"):
        shared.operator.get_job("beyond")
    assert job.ledger("job") == []


_TORCH_CLIENT = """
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    with np.load(Path(context.node_config["data"]) / "data.npz") as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    model = torch.nn.Linear(4, 1)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    fit(model, x, y)
    metrics = MetricRecord({"num-examples": len(y)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

def fit(model, x, y):
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in (0, 16):
        optimizer.zero_grad()
        lost = torch.nn.functional.mse_loss(model(x[start:start + 16])[:, 0], y[start:start + 16])
        lost.backward()
        optimizer.step()
"""

_TORCH_SERVER = """
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    torch.manual_seed(1)
    strategy = FedAvg(min_available_nodes=1, min_train_nodes=1, fraction_evaluate=0.0)
    first = ArrayRecord(torch.nn.Linear(4, 1).state_dict())
    strategy.start(grid=grid, initial_arrays=first, num_rounds=3)
"""


def test_one_client_in_torch_gives_what_plain_torch_gives(tmp_path: Path) -> None:
    import torch

    with FederationHarness(
        tmp_path / "torch", ("site-a",), client_app=_TORCH_CLIENT, server_app=_TORCH_SERVER
    ) as harness:
        harness.run("torch", strategy={"name": "app"}, evaluate={"fraction": 0.0})
        made = harness.weights("torch")
        x, y = map(torch.from_numpy, harness.data["site-a"])
    space: dict[str, Any] = {"torch": torch}
    exec(_TORCH_CLIENT[_TORCH_CLIENT.index("def fit") :], space)
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 1)
    for _ in range(3):
        space["fit"](model, x, y)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(made[name], value.numpy())


@pytest.mark.swtpm
def test_the_same_with_a_tpm_for_every_machine(tmp_path: Path) -> None:
    from attestation.attesters.software_tpm import SoftwareTpm

    if lacking := SoftwareTpm.available():
        pytest.skip(lacking)
    with FederationHarness(tmp_path / "tpm", ("site-a", "site-b"), tee=Tee.TPM) as harness:
        job = harness.run("tpm", rounds=2)
        assert {entry["tee"] for entry in job.ledger("admission")} == {"tpm"}
        assert harness.plaintext(MARKER.tobytes()[:64]) == []
