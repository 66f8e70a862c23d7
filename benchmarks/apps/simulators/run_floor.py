"""The floor: the same rounds as a plain loop over the clients, without any simulator."""

from __future__ import annotations

import numpy as np
from simulators_app import task


def main() -> None:
    """Run all rounds."""
    chosen = task.settings()
    arrays = task.first_arrays()
    for server_round in range(1, chosen.rounds + 1):
        total, sums = 0, {name: np.zeros_like(value) for name, value in arrays.items()}
        for client in range(chosen.clients):
            trained, count = task.train(arrays, client, server_round)
            total += count
            for name, value in trained.items():
                sums[name] += value * count
        arrays = {name: value / total for name, value in sums.items()}
    task.finish({name: value.astype(np.float32) for name, value in arrays.items()})


if __name__ == "__main__":
    main()
