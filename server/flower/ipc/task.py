"""The run that a process of a job works for, in Flower's form.

Flower's own servers describe a run at length: who started it, where its files are. Here a run is
a number, :attr:`server.flower.job_plan.JobPlan.run_id`; the rest of the description is empty.
"""

from __future__ import annotations

from typing import Final

from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["SERVER_NODE", "enter_run"]

SERVER_NODE: Final = 1
"""The number of the ServerApp's node, in Flower's numbering."""

_TASK: Final = 1


def enter_run(run_id: int) -> Run:
    """Let the messages that this process makes belong to a run; return its description."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = _TASK
    TaskIdentity.node_id = SERVER_NODE
    return Run.create_empty(run_id)
