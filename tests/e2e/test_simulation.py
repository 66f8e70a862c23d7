"""One job both ways: the weights of a simulation are those of a deployment, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fedlearn.compression.spec import CompressionSpec
from fedlearn.privacy import PrivacySpec, noise_secret
from fedlearn.simulation import SimulatedRun, simulate
from fedlearn.update.arrays import Array
from server.flower.application.bundle import build
from server.flower.job_plan import JobPlan
from tests.harness.flower_federation import (
    CLIENT_APP,
    SERVER_APP,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

CLIENT = CLIENT_APP.replace(
    'context.node_config["index"]',
    'context.node_config.get("partition-id", context.node_config.get("index"))',
)
"""Its state counts the calls, its updates are drawn from the seeded generator of each call."""

PRIVACY = PrivacySpec(
    epsilon=1e9, delta=1e-5, clip=1.0, noise_multiplier=0.5, insecure_deterministic_noise=True
)


def deployed(folder: Path, plan: JobPlan) -> dict[str, Array]:
    """Run a job with a coordinator, TLS and a process for each client and its app."""
    federation = FlowerFederation(folder)
    try:
        host, channel = federation.host(plan)
        for site in plan.spec.sites:
            federation.client(plan, site)
        host.start()
        outcome = ended(host, 120)
        assert outcome.status == "finished", outcome
        return channel.models[-1]
    finally:
        federation.close()


def simulated(folder: Path, plan: JobPlan, **more: Any) -> SimulatedRun:
    """Run the same job with simulated clients."""
    (folder / "job.toml").write_text(plan.spec.to_toml())
    return simulate(folder / "job.toml", **more)


TORCH_SERVER = """
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from tiny.client_app import network

app = ServerApp()

@app.main()
def main(grid, context):
    first = network().state_dict()
    FedAvg(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1).start(
        grid=grid, initial_arrays=ArrayRecord(first)
    )
"""

TORCH_CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from fedlearn.training.personal import PersonalLayers, batch_norm
from fedlearn.training.scaffold import Scaffold

torch.set_num_threads(1)
app = ClientApp()

def network():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def loss_of(model):
    x = torch.randn(16, 6)  # of the generator that is seeded for each call
    return nn.functional.cross_entropy(model(x), torch.randint(3, (16,)))

@app.train()
def train(message, context):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = {"num-examples": 16}
    if WITH_SCAFFOLD:
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        scaffold = Scaffold(message, context, model)
        scaffold.attach(optimizer)
    else:
        personal = PersonalLayers(context, batch_norm(model))
        personal.load(model, message.content["arrays"])
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
    if WITH_SCAFFOLD:
        metrics |= scaffold.finish()
        arrays = ArrayRecord(model.state_dict())
    else:
        arrays = personal.shared(model)
    metrics["loss"] = float(loss.detach())
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""


def both(tmp_path: Path, *, server: str = SERVER_APP, client: str = CLIENT, **plan: Any) -> None:
    app = write_app(tmp_path / "app", server=server, client=client)
    made = make_plan(build(app), sites=3, rounds=2, **plan)
    privacy = made.spec.privacy
    if privacy is not None:
        secret = noise_secret(privacy, seed=made.spec.seed)
        made = dataclasses.replace(made, noise_secret=secret)
    (tmp_path / "deployed").mkdir()
    field = deployed(tmp_path / "deployed", made)
    here = simulated(tmp_path, made).model
    assert list(here) == list(field)
    for name, array in field.items():
        assert here[name].dtype == array.dtype
        assert here[name].tobytes() == array.tobytes(), name


def test_central_privacy_with_deterministic_noise_has_the_same_bits(tmp_path: Path) -> None:
    both(tmp_path, strategy="fedavg", privacy=PRIVACY)


DP_SGD = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from fedlearn.training.private import make_private

app = ClientApp()

@app.train()
def train(message, context):
    weights, counter = message.content["arrays"].to_numpy_ndarrays()
    model = torch.nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weights)[None])
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(50, len(weights), generator=generator)
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(data, batch_size=5)
    private, optimizer, loader = make_private(model, optimizer, loader, context)
    for inputs, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(private(inputs), labels).backward()
        optimizer.step()
    new = [model.weight.detach().numpy()[0], counter]
    metrics = MetricRecord({"num-examples": 50})
    content = RecordDict({"arrays": ArrayRecord(new), "metrics": metrics})
    return Message(content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)
"""


USERS = DP_SGD.replace("import make_private", "import train_users, users_of").replace(
    DP_SGD[DP_SGD.index("    optimizer =") : DP_SGD.index("    new =")],
    """
    def train_user(own, positions):
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        torch.nn.functional.mse_loss(own(inputs[positions]), inputs[positions, :1]).backward()
        optimizer.step()

    users = users_of({"patient": [number % 7 for number in range(50)]}, context)
    train_users(model, users, train_user, context)
""",
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        ({"mechanism": "distributed-gaussian", "shares": 3}, {"quorum": 3}),
        ({"mechanism": "local-gaussian"}, {"strategy": "fedmedian", "quorum": 3}),
        ({"clip_quantile": 0.5, "clip_noise": 1.0}, {}),
        ({"sampling": "cyclic", "groups": 3}, {}),
        ({"sampling": "cyclic", "groups": 2, "noise": "banded"}, {}),
        ({"mechanism": "dp-sgd", "unit": "example", "batch_rate": 0.1, "steps": 4}, {}),
        ({"unit": "user", "users": 7, "user_column": "patient"}, {}),
    ],
)
def test_each_unit_and_each_place_of_the_noise_has_the_same_bits(
    tmp_path: Path, changes: dict[str, Any], plan: dict[str, Any]
) -> None:
    privacy = dataclasses.replace(PRIVACY, noise_multiplier=1.0, **changes)
    client = {"site": CLIENT, "user": USERS, "example": DP_SGD}[privacy.unit]
    both(tmp_path, privacy=privacy, client=client, **plan)


@pytest.mark.long
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({}, id="the app's FedAvg"),
        pytest.param({"strategy": "fedadam", "options": {"eta": 0.1}}, id="FedAdam"),
        pytest.param({"strategy": "fedmedian"}, id="a rule over single updates"),
        pytest.param(
            {"compression": CompressionSpec(update="topk", fraction=0.25)},
            id="compressed, with error feedback",
        ),
        pytest.param(
            {
                "strategy": "scaffold",
                "server": TORCH_SERVER,
                "client": TORCH_CLIENT.replace("WITH_SCAFFOLD", "True"),
            },
            id="SCAFFOLD",
        ),
        pytest.param(
            {"server": TORCH_SERVER, "client": TORCH_CLIENT.replace("WITH_SCAFFOLD", "False")},
            id="FedBN",
        ),
        pytest.param({"updates": "visible-to-app"}, id="a strategy in the application"),
        pytest.param(
            {"strategy": "fedavg", "aggregation": {"secure": "secagg+"}}, id="masked updates"
        ),
    ],
)
def test_the_weights_are_those_of_a_deployment_to_the_bit(
    tmp_path: Path, plan: dict[str, Any]
) -> None:
    both(tmp_path, **plan)
