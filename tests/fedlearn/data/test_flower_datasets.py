"""Apps that are written for ``flwr_datasets`` run unchanged on local files, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.data.flower_datasets import FederatedDataset, partitioner, provide
from fedlearn.errors import ConfigError
from tests.fedlearn.simulation.jobs import JOB, write_job

datasets: Any = pytest.importorskip("datasets")

APP = """
from datasets import load_dataset
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner
from torch.utils.data import DataLoader
import torch

fds = None


def scaled(batch):
    batch["img"] = [torch.tensor(list(img.tobytes())).float() / 255 for img in batch["img"]]
    return batch


def load_data(partition_id, num_partitions, batch_size):
    global fds
    if fds is None:
        fds = FederatedDataset(
            dataset="some/pictures",
            partitioners={"train": IidPartitioner(num_partitions=num_partitions)},
        )
    partition = fds.load_partition(partition_id)
    both = partition.train_test_split(test_size=0.2, seed=42).with_transform(scaled)
    return (
        DataLoader(both["train"], batch_size=batch_size, shuffle=True),
        DataLoader(both["test"], batch_size=batch_size),
    )


train, test = load_data(1, 4, 8)
batch = next(iter(train))
print(len(train.dataset), len(test.dataset), tuple(batch["img"].shape), tuple(batch["label"].shape))
print(len(load_dataset("some/pictures", split="test")))
skewed = FederatedDataset(
    dataset="some/pictures",
    partitioners={
        "train": DirichletPartitioner(num_partitions=3, partition_by="label", alpha=5.0),
        "test": 2,
    },
)
print(sum(len(skewed.load_partition(i, "train")) for i in range(3)))
print(len(skewed.load_partition(1, "test")), len(skewed.load_split("test")))

iris = FederatedDataset(dataset="hitorilabs/iris", partitioners={"train": 10})
frame = iris.load_partition(9, "train").with_format("pandas")[:]
print(frame[["petal_length", "sepal_width"]].values.shape, sorted(set(frame["species"])))
print(list(load_dataset("scikit-learn/iris")["train"].to_pandas().columns))
try:
    load_dataset("uoft-cs/cifar10")
except Exception as error:
    print(error)
"""

BEFORE = """
import socket, sys
from pathlib import Path


def refuse(*args, **kwargs):
    raise AssertionError("a network was used")


socket.socket.connect = socket.getaddrinfo = refuse
from fedlearn.data.flower_datasets import provide

provide(Path(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pillow = pytest.importorskip("PIL.Image")
    home = tmp_path / "datasets" / "some" / "pictures"
    home.mkdir(parents=True)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    for split, count in (("train", 120), ("test", 30)):
        rows = [
            {"img": pillow.fromarray(np.full((4, 4), i, dtype=np.uint8)), "label": i % 3}
            for i in range(count)
        ]
        found = datasets.Dataset.from_list(rows, features=features)
        found.to_parquet(home / f"{split}.parquet")
    return tmp_path / "datasets"


def test_an_app_of_flowers_form_runs_offline_and_unchanged(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + APP, str(folder)],
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "home"),
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "24 6 (8, 16) (8,)"
    assert lines[1:4] == ["30", "120", "15 30"]
    assert lines[4] == "(15, 2) [0, 1, 2]"
    assert lines[5].startswith("['Id', 'PetalLengthCm'")
    assert "the data set 'uoft-cs/cifar10' is not on this machine" in lines[6]


CLIENT = """
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr_datasets import FederatedDataset
import numpy as np

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    fds = FederatedDataset(
        dataset="hitorilabs/iris",
        partitioners={"train": int(context.node_config["num-partitions"])},
    )
    part = fds.load_partition(int(context.node_config["partition-id"])).with_format("numpy")
    arrays = ArrayRecord([np.asarray([part["petal_length"][:].mean()], dtype=np.float32)])
    metrics = MetricRecord({"num-examples": len(part)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""

SERVER = """
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
import numpy as np

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    first = ArrayRecord([np.zeros(1, dtype=np.float32)])
    FedAvg(fraction_evaluate=0.0).start(grid=grid, initial_arrays=first, num_rounds=1)
"""


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_a_simulated_app_loads_its_partition_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    pytest.importorskip("sklearn")
    from fedlearn.simulation import simulate

    (tmp_path / "datasets").mkdir()
    monkeypatch.setenv("FEDLEARN_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets, "load_dataset", datasets.load_dataset)
    job = write_job(tmp_path, client=CLIENT, server=SERVER, job=JOB.replace("= 3", "= 1"))
    run = simulate(job, workers=workers)
    (mean,) = run.model.values()
    # The mean of all 150 petals is 3.758 cm (Fisher 1936).
    assert float(mean[0]) == pytest.approx(3.758, abs=1e-3)
    for name in [name for name in sys.modules if name.partition(".")[0] == "flwr_datasets"]:
        del sys.modules[name]


def numbers(count: int = 60) -> Any:
    return datasets.Dataset.from_dict(
        {"label": [i % 3 for i in range(count)], "user": [f"u{i % 4}" for i in range(count)]}
    )


def test_each_partitioner_deals_every_example_once() -> None:
    for made in (
        partitioner.IidPartitioner(7),
        partitioner.DirichletPartitioner(4, "label", 2.0, min_partition_size=2, seed=None),
        partitioner.DirichletPartitioner(4, "label", 2, 2, self_balancing=True, shuffle=False),
        partitioner.NaturalIdPartitioner("user"),
    ):
        made.dataset = numbers().add_column("row", list(range(60)))
        parts = [made.load_partition(i)["row"] for i in range(made.num_partitions)]
        assert sorted(row for part in parts for row in part) == list(range(60))


def test_splits_are_joined_and_shuffled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = datasets.DatasetDict({"train": numbers(60), "test": numbers(12)})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: pair)

    def made(**keywords: Any) -> Any:
        return FederatedDataset(dataset="a", partitioners={"all": 2}, **keywords)

    joined = made(preprocessor={"all": ("train", "test")})
    assert len(joined.load_partition(0)) == 36
    assert joined.partitioners["all"].num_partitions == 2
    mapped = made(preprocessor=lambda splits: datasets.DatasetDict({"all": splits["test"]}))
    assert len(mapped.load_split("all")) == 12
    plain = FederatedDataset(dataset="a", partitioners={"train": 1}, shuffle=False)
    assert plain.load_partition(0)["label"][:4] == [0, 1, 2, 0]


def test_what_the_drop_in_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: numbers())
    with pytest.raises(ConfigError, match="a DatasetDict is expected"):
        FederatedDataset(dataset="a", partitioners={"train": 2}).load_split("train")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda **_: datasets.DatasetDict({"train": numbers()})
    )
    made = FederatedDataset(dataset="a", partitioners={"train": 2, "other": 1})
    with pytest.raises(ValueError, match="name the split"):
        made.load_partition(0)
    with pytest.raises(ValueError, match="has no partitioner"):
        made.load_partition(0, "test")
    with pytest.raises(ValueError, match="there is no split 'other'"):
        made.load_partition(0, "other")
    with pytest.raises(ValueError, match="partition 2; there are 0 to 1"):
        made.load_partition(2, "train")
    same = partitioner.IidPartitioner(2)
    with pytest.raises(ValueError, match="given for two splits"):
        FederatedDataset(dataset="a", partitioners={"train": same, "test": same})
    with pytest.raises(ConfigError, match="60 examples cannot be divided among 61"):
        FederatedDataset(dataset="a", partitioners={"train": 61}).load_partition(0)
    with pytest.raises(ConfigError, match="alpha is 'x'"):
        partitioner.DirichletPartitioner(2, "label", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 partitions"):
        partitioner.IidPartitioner(0)
    with pytest.raises(AttributeError, match="has no VerticalSizePartitioner"):
        _ = partitioner.VerticalSizePartitioner
    lost = partitioner.NaturalIdPartitioner("writer")
    with pytest.raises(AttributeError, match="no dataset was assigned"):
        lost.load_partition(0)
    lost.dataset = numbers()
    with pytest.raises(ConfigError, match="has no column 'writer'"):
        lost.load_partition(0)
    with pytest.raises(ConfigError, match="is no folder of data sets"):
        provide(tmp_path / "nothing")
