"""Clients in a Ray cluster on this machine: the bits of one process, also when a worker is lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import ConfigError
from fedlearn.simulation import Call, Hook, simulate
from fedlearn.simulation.clients import ray_workers
from tests.fedlearn.simulation.jobs import CLIENT, write_job

needs_ray = pytest.mark.skipif(
    not ray_workers.installed(), reason="pip install 'fedlearn[ray]' for the backend ray"
)


def bits(model: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))  # which importing ray changes
    return write_job(tmp_path)


@pytest.fixture
def cluster(job: Path) -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


class Kill(Hook):
    """Ends every worker of the cluster once, before the second round."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def asked(self, call: Call, arrays: Any) -> Any:
        if call.round == 2 and not self.marker.exists():
            self.marker.touch()
            for line in (self.marker.parent / "pids").read_text().split():
                os.kill(int(line), signal.SIGKILL)
        return arrays


@needs_ray
@pytest.mark.long
def test_a_cluster_changes_no_bit_and_a_lost_worker_neither(
    job: Path, tmp_path: Path, cluster: Any
) -> None:
    expected = bits(simulate(job).model)
    assert bits(simulate(job, backend="ray", workers=2).model) == expected
    pids = tmp_path / "pids"
    client = f"import os\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\n" + CLIENT
    second = tmp_path / "second"
    second.mkdir()
    lost = write_job(second, client=client)
    found = bits(simulate(lost, backend="ray", workers=2, hooks=[Kill(tmp_path / "killed")]).model)
    assert (tmp_path / "killed").exists()
    assert found == expected
    assert cluster.is_initialized(), "the caller's cluster goes on"


@needs_ray
@pytest.mark.long
def test_more_workers_than_the_cluster_has_room_for_are_refused(
    job: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "_START_SECONDS", 15.0)
    with pytest.raises(ConfigError, match="started not all of 3 workers of 1 CPUs"):
        simulate(job, backend="ray", workers=3)


@needs_ray
@pytest.mark.long
def test_a_cluster_with_other_software_is_refused(
    job: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ray_workers.software()
    monkeypatch.setattr(ray_workers, "software", lambda: {**mine, "numpy": "0.1"})
    with pytest.raises(ConfigError, match=r"has other software: numpy .* \(here 0\.1\)"):
        simulate(job, backend="ray", workers=1)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_named(
    job: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address}: the Ray cluster cannot be"):
        simulate(job, backend="ray", workers=1)


def test_without_ray_the_extra_is_named(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package 'ray'") as refused:
        simulate(job, backend="ray")
    assert refused.value.hint == "pip install 'fedlearn[ray]'"


def test_a_backend_that_does_not_exist_is_refused(job: Path) -> None:
    with pytest.raises(ConfigError, match="'slurm' is not one of process, ray"):
        simulate(job, backend="slurm")
