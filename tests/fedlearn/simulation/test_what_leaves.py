"""Filters of the sites and masked updates in a simulation: the code of the field, the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attestation.config import InconsistentValues
from fedlearn.config.filters import FilterSpec
from fedlearn.errors import FedlearnError
from fedlearn.job.events import UpdateReceived
from fedlearn.results.run_folder import RunFolder
from fedlearn.simulation import SimulatedRun, simulate
from fedlearn.simulation.setup import ClientsSetup, SimulationSetup
from tests.fedlearn.simulation.jobs import write_job

NOISE = (FilterSpec(kind="clip", norm=0.5), FilterSpec(kind="gaussian", sigma=0.1))
SECURE = '\n[strategy]\nname = "fedavg"\n[aggregation]\nsecure = "secagg+"\n'


def bits(run: SimulatedRun) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in run.model.items()}


def test_the_filters_of_the_sites_apply_and_are_named(tmp_path: Path) -> None:
    job = write_job(tmp_path, more='\n[strategy]\nname = "fedavg"\n')
    setup = SimulationSetup(clients=ClientsSetup(filters=NOISE))
    filtered = simulate(job, setup=setup)
    assert bits(simulate(job, setup=setup, workers=1)) == bits(filtered)
    assert bits(simulate(job)) != bits(filtered)
    received = [
        event
        for event, _ in RunFolder.load(filtered.folder).events()
        if isinstance(event, UpdateReceived)
    ]
    assert [event.filters for event in received] == [("clip", "gaussian")] * 9
    with pytest.raises(FedlearnError, match="site_filters"):
        simulate(job, setup=setup, overrides={"aggregation.site_filters": "refuse"})


def test_filters_in_a_wrong_order_are_refused() -> None:
    with pytest.raises(InconsistentValues, match="needs a filter"):
        ClientsSetup(filters=NOISE[::-1])


def test_masked_updates_make_the_mean_and_the_same_bits_with_workers(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = simulate(write_job(tmp_path / "plain", more=SECURE.replace('"secagg+"', '"off"')))
    job = write_job(tmp_path, more=SECURE)
    masked = simulate(job)
    assert bits(simulate(job, workers=2)) == bits(masked)
    for name, array in masked.model.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, plain.model[name], atol=1e-5)
