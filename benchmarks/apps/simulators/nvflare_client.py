"""The script of a client of NVFlare."""

from __future__ import annotations

import nvflare.client as flare
import torch
from simulators_app import task


def main() -> None:
    """Train each model that arrives."""
    flare.init()
    client = int(flare.get_site_name().rpartition("-")[2])
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        arrays = {name: torch.as_tensor(v).numpy() for name, v in received.params.items()}
        trained, count = task.train(arrays, client, int(received.current_round) + 1)
        flare.send(
            flare.FLModel(
                params={name: torch.from_numpy(value) for name, value in trained.items()},
                meta={"NUM_STEPS_CURRENT_ROUND": count},
            )
        )


if __name__ == "__main__":
    main()
