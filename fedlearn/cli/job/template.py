"""The example job of ``fedlearn job init``, complete and small, with data.

Invented hospitals, two by default, have 400 patients each; a logistic regression in torch predicts
who falls ill. Comments in the files mark what a user replaces. More jobs, one for each purpose, are
listed in docs/examples.md.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Final

from attestation.config.writing import value_text
from fedlearn import __version__
from fedlearn.config import NAME, relative
from fedlearn.errors import ConfigError
from fedlearn.identity.software import software_digest

__all__ = ["SITES", "package_name", "write"]

SITES: Final = ("site-a", "site-b")
_ROWS: Final = 400
_FEATURES: Final = 4

_JOB: Final = """\
# A federated job. `fedlearn job validate job.toml` checks whether it can run.

name = "$name"
app = "app"                # the Flower app's folder, next to this file
rounds = 5
sites = [$sites]
policy = "policy.toml"     # what a client must prove before it is admitted

quorum = $count                 # updates that a round needs
deadline_s = 120           # seconds that a round may take ...
stragglers = "drop"        # ... and then "drop" the late sites, or "fail" the job
seed = 1                   # the same seed gives the same model; see docs/reference/job.md

# The finished model opens for the holder of this key: `fedlearn model keygen` makes a pair.
$owner
# What the app writes at the sites opens for it, too, where the sites allow that.
# app_logs = "sealed"

# "app" runs the strategy that the app's ServerApp starts. Another name, such as "fedavg" or
# "fedadam", replaces it: see docs/how-to/choose-a-strategy.md.
[strategy]
name = "app"

# What the app's ServerApp receives: the aggregate of each round ("aggregated"), or also the
# update of each site ("visible-to-app"), which an own aggregation or the legacy API needs.
[aggregation]
updates = "aggregated"

[config]                   # overrides of [tool.flwr.app.config] in app/pyproject.toml
local-epochs = 2

[evaluate]
every = 1
metric = "accuracy"        # shown first while the job runs

[resources]                # for each client
cpu = 1
memory_mib = 2048

# The data of each site: the name of a data set in that site's site.toml.
$data
# Lets updates travel in fewer bytes.
# [compression]
# update = "int8"          # or "bf16", "fp16", "topk"

# Limits what the model may reveal about one site. Without this table there is no limit.
# [privacy]
# mechanism = "central-gaussian"
# clip = 1.0
# noise_multiplier = 1.5
# epsilon = 8.0
# delta = 1e-5
"""

_POLICY: Final = """\
# What evidence must prove before its sender is admitted. What is not named is refused.
# The digests of the app and of the job are always compared, with those of the submitted job.

version = 1
name = "$name"

# "sample" is evidence made by software. It proves nothing about hardware: use it to try a job on
# one machine, never for real data. Name "tdx", "snp" or "tpm" instead, and pin the launch
# measurement, here and for the coordinator, or nobody is admitted: `fedlearn policy init` writes
# the values of a running machine, `fedlearn policy reference` those of files.
accept = ["sample"]
insecure_sample = true

# The digest of the fedlearn code that wrote this file. Sites and coordinators with other code
# are refused; name several values during an upgrade.
[[reference]]
claim = "software"
value = "$software"
name = "fedlearn $version"

[require]
claims = ["software", "app", "job"]

# What the coordinator must prove to every client before it is sent anything.
[coordinator]
version = 1
name = "$name-coordinator"
accept = ["sample"]
insecure_sample = true

[[coordinator.reference]]
claim = "software"
value = "$software"
name = "fedlearn $version"
"""

_PROJECT: Final = """\
[project]
name = "$project"
version = "1.0.0"
description = "A logistic regression over several sites"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["flwr>=1.41", "torch>=2.4"]

[tool.flwr.app]
publisher = "$project"
fab-include = ["$package/*.py"]

[tool.flwr.app.components]
serverapp = "$package.server_app:app"
clientapp = "$package.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 5
local-epochs = 2
learning-rate = 0.5
seed = 1
"""

_TASK: Final = '''\
"""The model and the data: replace these with yours."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

FEATURES = 4

torch.set_num_threads(1)


def new_model() -> nn.Module:
    """Return the model before the first round."""
    model = nn.Linear(FEATURES, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


@functools.lru_cache(maxsize=2)
def load(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (n, FEATURES) and labels (n,). Read once: the process stays warm."""
    with (Path(folder) / "data.csv").open(newline="") as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    table = torch.tensor(rows)
    return table[:, :FEATURES], table[:, FEATURES]


def train(
    model: nn.Module, folder: str, *, epochs: int, rate: float, proximal_mu: float = 0.0
) -> tuple[float, int]:
    """Train in place; return the loss and the number of examples.

    `proximal_mu` holds the weights near those that came from the coordinator: the term of FedProx
    (Li et al. 2020, arXiv:1812.06127), which has no effect at 0.
    """
    features, labels = load(folder)
    received = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    loss = torch.tensor(0.0)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(features).squeeze(1), labels)
        pairs = zip(model.parameters(), received, strict=True)
        distance = sum((ours - theirs).square().sum() for ours, theirs in pairs)
        (loss + proximal_mu / 2 * distance).backward()
        optimizer.step()
    return loss.item(), len(labels)


def judge(model: nn.Module, folder: str) -> tuple[float, float, int]:
    """Return the loss, the accuracy and the number of examples."""
    features, labels = load(folder)
    with torch.no_grad():
        logits = model(features).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits, labels).item()
        accuracy = ((logits > 0) == (labels > 0.5)).float().mean().item()
    return loss, accuracy, len(labels)
'''

_CLIENT: Final = '''\
"""What runs at a site, inside the trusted environment."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from $package import task

app = ClientApp()


def model_of(message: Message):
    """Return the model with the weights that came with the message."""
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the site's data. `node_config["data"]` is where it is mounted."""
    model = model_of(message)
    config = context.run_config
    loss, examples = task.train(
        model,
        str(context.node_config["data"]),
        epochs=int(config["local-epochs"]),
        rate=float(config["learning-rate"]),
        # What the strategy sends. Only FedProx sends this; without it, there is no such term.
        proximal_mu=float(message.content["config"].get("proximal-mu", 0.0)),
    )
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": examples, "loss": loss}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the model on the site's data."""
    loss, accuracy, examples = task.judge(model_of(message), str(context.node_config["data"]))
    metrics = MetricRecord({"num-examples": examples, "loss": loss, "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
'''

_SERVER: Final = '''\
"""What runs at the coordinator."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from $package import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the sites' weights, round by round. Any `flwr.serverapp.strategy` works here."""
    # `quorum` in job.toml is how many sites a round needs, and more take part if they are there.
    # A larger number here would have priority over it.
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
'''


def package_name(name: str) -> str:
    """Return the Python package of a job's app; never a package of fedlearn."""
    return re.sub(r"[^a-z0-9]", "_", f"{name}_app" if name[0].isalpha() else f"app_{name}")


def _project_name(name: str) -> str:
    """Return a name that Flower accepts for an app: it starts with a letter, of 32 at most."""
    return (name if name[0].isalpha() else f"app-{name}")[:32].rstrip("-")


def write(
    folder: Path, name: str, *, sites: Sequence[str] = SITES, owner_key: Path | None = None
) -> tuple[Path, ...]:
    """Write a job named ``name`` to ``folder`` atomically; return its files.

    ``owner_key`` is the file of the public key to which the model is sealed.

    :raises ConfigError: when ``folder`` exists and is not empty, or ``name`` is not a name.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a job",
            where="--name",
            hint="use 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'",
        )
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError("exists and is not a directory", where=str(folder))
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            "is not empty", where=str(folder), hint="name a new directory; nothing was written"
        )
    files = _files(name, sites, _owner(owner_key, folder))
    if folder.is_dir():
        _fill(folder, files)
    else:
        _make(folder, files)
    return tuple(folder / path for path in files)


def _make(folder: Path, files: Mapping[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(scratch, files)
        scratch.chmod(0o777 & ~_umask())
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    """Fill an empty folder in place: it may be the working directory of a shell."""
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        _write(scratch, files)
        for path in sorted(scratch.iterdir()):
            path.rename(folder / path.name)
        scratch.rmdir()
    except BaseException:
        # The folder was empty, so these files were written here.
        for name in {Path(path).parts[0] for path in files}:
            shutil.rmtree(folder / name, ignore_errors=True)
            if (folder / name).is_file():
                (folder / name).unlink()
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _owner(key: Path | None, folder: Path) -> str:
    """Return the line about the owner's key; relative paths of a job start from its folder."""
    if key is None:
        return '# owner_key = "owner.pub.pem"'
    return f"owner_key = {value_text(relative(key, folder / 'job.toml'))}"


def _files(name: str, sites: Sequence[str], owner: str) -> Mapping[str, str]:
    package = package_name(name)
    software = software_digest().hex()

    def fill(text: str) -> str:
        return Template(text).substitute(
            name=name,
            package=package,
            project=_project_name(name),
            software=software,
            version=__version__,
            sites=", ".join(map(value_text, sites)),
            count=len(sites),
            owner=owner,
            data="\n".join(f'[data.{site}]\nset = "{name}"\n' for site in sites),
        )

    files = {
        "job.toml": fill(_JOB),
        "policy.toml": fill(_POLICY),
        "app/pyproject.toml": fill(_PROJECT),
        f"app/{package}/__init__.py": '"""A logistic regression over several sites."""\n',
        f"app/{package}/task.py": _TASK,
        f"app/{package}/client_app.py": fill(_CLIENT),
        f"app/{package}/server_app.py": fill(_SERVER),
    }
    for number, site in enumerate(sites):
        files[f"data/{site}/data.csv"] = _patients(number)
    return files


def _patients(number: int) -> str:
    """Return a table of invented patients; their distribution differs between the sites."""
    draw = random.Random(number)  # noqa: S311 (invented data, not a secret)
    lines = ["age,pressure,sugar,weight,ill"]
    for _ in range(_ROWS):
        row = [draw.gauss(0.3 * number, 1.0) for _ in range(_FEATURES)]
        risk = 1.5 * row[0] - 1.0 * row[1] + 0.5 * row[2] - 0.2
        ill = draw.random() < 1 / (1 + math.exp(-risk))
        lines.append(",".join(f"{value:.3f}" for value in row) + f",{int(ill)}")
    return "\n".join(lines) + "\n"


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
