"""BlazeFL's process pool with two processes: its protocols, our training function."""

from __future__ import annotations

import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from blazefl.core import ProcessPoolClientTrainer
from blazefl.core.client_trainer import IPCMode
from simulators_app import task


@dataclass
class Down:
    """The model of a round."""

    state: dict[str, torch.Tensor]
    server_round: int


@dataclass
class Up:
    """The values that a client trained, and how many examples it has."""

    state: dict[str, torch.Tensor]
    count: int


@dataclass
class Config:
    """Which client."""

    client: int


class Trainer(ProcessPoolClientTrainer[Up, Down, Config]):
    """Trains clients in the pool; packages travel in files, as is BlazeFL's default."""

    def __init__(self, folder: Path) -> None:
        self.num_parallels = 2
        self.share_dir = folder
        self.device = "cpu"
        self.device_count = 0
        self.cache: list[Up] = []
        self.ipc_mode = IPCMode.STORAGE
        self.manager = multiprocessing.Manager()
        self.stop_event = self.manager.Event()

    def uplink_package(self) -> list[Up]:
        """Return what the clients of the round sent."""
        sent, self.cache = self.cache, []
        return sent

    def get_client_config(self, cid: int) -> Config:
        """Return what a client needs to know."""
        return Config(cid)

    @staticmethod
    def worker(config, payload, device, stop_event, *, shm_buffer=None):  # type: ignore[no-untyped-def]
        """Train one client in a process of the pool."""
        chosen = torch.load(config, weights_only=False)
        down = torch.load(payload, weights_only=False)
        arrays = {name: value.numpy() for name, value in down.state.items()}
        trained, count = task.train(arrays, chosen.client, down.server_round)
        torch.save(Up({name: torch.from_numpy(v) for name, v in trained.items()}, count), config)
        return config


def main() -> None:
    """Run all rounds; the server's part of BlazeFL is a protocol, which a user writes."""
    chosen = task.settings()
    state = {name: torch.from_numpy(v) for name, v in task.first_arrays().items()}
    with tempfile.TemporaryDirectory() as name:
        trainer = Trainer(Path(name))
        for server_round in range(1, chosen.rounds + 1):
            trainer.local_process(Down(state, server_round), list(range(chosen.clients)))
            packages = trainer.uplink_package()
            total = sum(package.count for package in packages)
            state = {
                key: torch.stack([p.state[key] * (p.count / total) for p in packages]).sum(0)
                for key in state
            }
    task.finish({key: value.numpy() for key, value in state.items()})


if __name__ == "__main__":
    main()
