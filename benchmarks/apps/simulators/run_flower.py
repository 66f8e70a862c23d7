"""Flower's simulation engine, on Ray: the app unchanged."""

from __future__ import annotations

from flwr.simulation import run_simulation
from simulators_app import client_app, server_app, task

if __name__ == "__main__":
    run_simulation(
        server_app=server_app.app,
        client_app=client_app.app,
        num_supernodes=task.settings().clients,
        backend_config={
            "init_args": {"num_cpus": 2, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
