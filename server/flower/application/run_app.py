"""Runs the ServerApp of a job, with the grid that leads to the job's aggregator."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedlearn.app.install import Installed
from fedlearn.errors import JobError
from fedlearn.job.seeds import derive, seed_generators
from server.flower.application.app_grid import AppGrid, JobRules, installed
from server.flower.ipc.peer import ServingCaller
from server.flower.ipc.task import SERVER_NODE, enter_run

__all__ = ["run_app"]


def run_app(
    application: Installed,
    job: Mapping[str, Any],
    peer: ServingCaller,
    *,
    node_config: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Load the ServerApp and run it to its end.

    What user code raises is not changed.

    :param job: what the aggregator sends of it
        (:func:`server.flower.aggregation.aggregator.for_application`).
    :param peer: the aggregator.
    :param node_config: of the context of the app; a deployed ServerApp has none.
    :raises JobError: when there is no ServerApp, or a setting of the job is not one of the app.
    """
    run = enter_run(job["run"])
    rules = JobRules(
        sites=tuple(job["sites"]),
        seconds=job["seconds"],
        stragglers=job["stragglers"],
        seed=job["seed"],
        max_bytes=job["max_bytes"],
    )
    context = Context(
        run_id=run.run_id,
        node_id=SERVER_NODE,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=application.run_config(job["run_config"]),
    )
    seed = derive(rules.seed, "server", 0)
    with installed():
        seed_generators(seed)
        app = application.load("serverapp")
        if not isinstance(app, ServerApp):
            raise JobError(f"{application.serverapp} is a {type(app).__name__}, not a ServerApp")
        # Once more: the application has brought its libraries, and may have used them.
        seed_generators(seed)
        app(grid=AppGrid(peer, run, rules), context=context)
