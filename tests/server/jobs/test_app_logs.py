"""Which logs of apps a coordinator keeps, and of whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedlearn.errors import ConfigError, JobError, Throttled
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.owner_key import owner_key_text
from server.admission.registry import Admission
from server.jobs import app_logs
from server.jobs.supervisor import JobSupervisor
from tests.harness.restarting_coordinator import (
    RestartingCoordinator,
    restarting_coordinator,
    tiny_bundle,
)

POLICY = (
    'version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
    '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
)
KEYS = f'owner_key = "{owner_key_text(bytes(range(32)))}"\napp_logs = "sealed"\n'
LOG = SealedAppLog(client="c1", stream=bytes(16), round=1, sequence=0, sealed=b"sealed")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestartingCoordinator]:
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    with restarting_coordinator(tmp_path) as begin:
        yield begin


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    return tiny_bundle(tmp_path / "app")


def submit(coordinator: Any, bundle: bytes, name: str, keys: str = KEYS) -> Any:
    text = f'name = "{name}"\napp = "app"\nrounds = 1\nsites = ["site-a"]\n'
    return coordinator.submit_job(
        "alice", job_toml=f'{text}policy = "policy.toml"\n{keys}', bundle=bundle, policy_toml=POLICY
    )


def client(job: str) -> Admission:
    return cast("Admission", SimpleNamespace(job=job, site="site-a"))


def test_a_log_is_kept_with_its_job_and_survives_a_restart(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle, "alpha")
    coordinator.deliver_app_log(client("alpha"), LOG)
    coordinator = start()
    assert list(coordinator.app_logs("alpha", "site-a")) == [LOG]
    coordinator.cancel_job("alice", "alpha")
    assert list(coordinator.app_logs("alpha", "site-a")) == [LOG]
    with pytest.raises(JobError, match="is not open"):
        coordinator.deliver_app_log(client("alpha"), LOG)
    # The next run of the name begins without logs, and they go with their run.
    submit(coordinator, bundle, "alpha")
    assert list(coordinator.app_logs("alpha.2", "site-a")) == []
    coordinator.delete_job("alice", "alpha")
    with pytest.raises(JobError):
        list(coordinator.app_logs("alpha", "site-a"))


def test_a_job_that_did_not_ask_for_logs_has_none(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle, "quiet", keys="")
    with pytest.raises(JobError, match="without the logs of its app"):
        coordinator.deliver_app_log(client("quiet"), LOG)
    with pytest.raises(JobError, match="without the logs of its app"):
        list(coordinator.app_logs("quiet", "site-a"))
    with pytest.raises(JobError, match="no job"):
        list(coordinator.app_logs("unknown", "site-a"))


def test_a_site_of_another_job_has_no_logs_here(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle, "alpha")
    with pytest.raises(JobError, match="has no site 'site-b'"):
        list(coordinator.app_logs("alpha", "site-b"))


def test_to_others_than_the_owner_a_job_is_as_if_it_were_not_there(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    submit(coordinator, bundle, "alpha")
    submit(coordinator, bundle, "quiet", keys="")
    coordinator.deliver_app_log(client("alpha"), LOG)
    mine = bytes(range(32))
    run, digest, logs = coordinator.app_logs_of_owner("alpha@1", "site-a", mine)
    assert (run, digest.hex(), list(logs)) == ("alpha", coordinator.get_job("alpha").id, [LOG])
    reasons = set()
    for name, site, key in (
        ("alpha", "site-a", bytes(32)),
        ("alpha", "site-b", mine),
        ("quiet", "site-a", b""),
        ("quiet", "site-a", mine),
        ("never", "site-a", mine),
        ("../alpha", "site-a", mine),
    ):
        with pytest.raises(JobError) as refused:
            coordinator.app_logs_of_owner(name, site, key)
        reasons.add(str(refused.value).replace(name, "JOB").replace(site, "SITE"))
    assert reasons == {"no logs of site SITE in a job JOB are sealed for this key"}


def test_a_client_that_delivers_without_end_is_throttled(
    start: RestartingCoordinator, bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_logs, "_BURST", 2)
    monkeypatch.setattr(app_logs, "_SECONDS_FOR_EACH", 1e6)
    coordinator = start()
    submit(coordinator, bundle, "alpha")
    for _ in range(2):
        coordinator.deliver_app_log(client("alpha"), LOG)
    with pytest.raises(Throttled, match="more often"):
        coordinator.deliver_app_log(client("alpha"), LOG)
    assert len(list(coordinator.app_logs("alpha", "site-a"))) == 2


def test_a_site_that_reports_that_it_sends_none_is_noted(
    start: RestartingCoordinator, bundle: bytes
) -> None:
    coordinator = start()
    sites = coordinator._selection._sites
    for number, (mode, count) in enumerate((("off", 1), ("insecure-plain", 1), ("sealed", 0))):
        sites.report_capabilities("site-a", f'{{"accept": {{"app_logs": "{mode}"}}}}')
        notes = submit(coordinator, bundle, f"job-{number}").notes
        assert len([note for note in notes if "sends no logs of the app" in note]) == count


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ('app_logs = "sealed"\n', "owner_key"),
        (
            f'{KEYS}[privacy]\nmechanism = "central-gaussian"\nclip = 1.0\n'
            "noise_multiplier = 2.0\nepsilon = 8.0\ndelta = 1e-5\n",
            "no budget of",
        ),
        ('app_logs = "plain"\n', "app_logs"),
    ],
)
def test_a_job_that_cannot_have_logs_is_refused(
    start: RestartingCoordinator, bundle: bytes, keys: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        submit(start(), bundle, "alpha", keys=keys)
