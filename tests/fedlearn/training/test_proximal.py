"""The proximal term: its fixed point, and a mu that is none."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.algorithm_names import PROXIMAL_MU
from fedlearn.errors import JobError
from fedlearn.training import Proximal
from tests.fedlearn.training.rounds import CENTER, CURVATURE, Quadratic, descend


def message(**config: float) -> Message:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    named = {key.replace("_", "-"): value for key, value in config.items()}
    return Message(RecordDict({"config": ConfigRecord(named)}), 1, "train")


def test_training_ends_where_loss_and_term_together_are_least() -> None:
    model = Quadratic()
    with torch.no_grad():
        model.w.fill_(1.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Proximal.of_job(message(proximal_mu=3.0), model).attach(optimizer)
    descend(model, optimizer, 0, 200)
    least = (CURVATURE[0] * CENTER[0] + 3.0 * 1.5) / (CURVATURE[0] + 3.0)
    assert model.w.tolist() == pytest.approx([least] * 2)


def test_without_mu_it_changes_no_bit() -> None:
    found = []
    for attached in (False, True):
        model = Quadratic()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if attached:
            Proximal.of_job(message(proximal_mu=0.0), model).attach(optimizer)
        descend(model, optimizer, 1, 3)
        found.append(model.w.detach().numpy().tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_a_mu_that_is_none_is_refused(mu: float) -> None:
    with pytest.raises(JobError, match="must be a finite number from 0"):
        Proximal.of_job(message(proximal_mu=mu), Quadratic())


def test_a_job_that_sends_no_mu_is_refused() -> None:
    with pytest.raises(JobError, match=f"no number '{PROXIMAL_MU}'"):
        Proximal.of_job(message(), Quadratic())
