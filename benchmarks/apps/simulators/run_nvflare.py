"""NVFlare's simulator: its FedAvg recipe, two clients at a time, the Client API in each."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from simulators_app import task


def main() -> None:
    """Run the job, and test the model that it kept."""
    chosen = task.settings()
    recipe = FedAvgRecipe(
        name="simulators",
        model={"class_path": "simulators_app.task.Net", "args": {}},
        min_clients=chosen.clients,
        num_rounds=chosen.rounds,
        train_script=str(Path(__file__).with_name("nvflare_client.py")),
    )
    names = [f"client-{number:04d}" for number in range(chosen.clients)]
    env = SimEnv(clients=names, num_threads=2, workspace_root=str(Path.cwd() / "workspace"))
    recipe.execute(env)
    kept = sorted(Path("workspace").rglob("FL_global_model.pt"))
    if not kept:
        sys.exit("NVFlare kept no model")
    state = torch.load(kept[0], weights_only=False)["model"]
    task.finish({name: torch.as_tensor(value).numpy() for name, value in state.items()})


if __name__ == "__main__":
    main()
