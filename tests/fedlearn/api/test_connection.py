"""Models and the ledger by the public API, against real listeners with a real store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedlearn
from fedlearn.errors import ConfigError, JobError, KeyReleaseDenied, LedgerError, ModelNotAuthentic
from fedlearn.identity.keyfile import make_key_pair, read_private_key
from fedlearn.identity.login import LEDGER_HEAD, OperatorLogin
from fedlearn.job.state import JobState, JobStatus
from server.identity.pki import CertificateAuthority
from tests.harness.deployment import key_pem
from tests.harness.listeners import DeploymentListeners

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def login(listeners: DeploymentListeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login; the job ``alpha`` has a model that is sealed for ``owner.pem``."""
    chain, key = listeners.deployment.operator()
    folder = tmp_path / "login"
    OperatorLogin(
        address=listeners.control,
        ca=listeners.deployment.ca.certificate_pem,
        chain=chain,
        key=key_pem(key),
    ).save(folder)
    for name in ("owner.pem", "stranger.pem"):
        make_key_pair(tmp_path / name, passphrase="" if name == "stranger.pem" else "sesame")
    owner = read_private_key(tmp_path / "owner.pem", ask=lambda: "sesame")
    listeners.store.write(
        "alpha", WEIGHTS, round=1, recipients=(owner.public_key().public_bytes_raw(),)
    )

    def state(name: str) -> JobState:
        return JobState(
            name="alpha", id="00", status=JobStatus.FINISHED, model="alpha", rounds=1, round=1
        )

    monkeypatch.setattr(listeners.coordinator, "get_job", state)
    return folder


def test_the_owner_opens_the_model_of_a_run(login: Path, tmp_path: Path) -> None:
    with fedlearn.connect(login) as coordinator:
        result = coordinator.job("alpha").result()
        model = result.model(key=tmp_path / "owner.pem", ask=lambda: "sesame")
        assert np.array_equal(model["w"], WEIGHTS["w"])
        tensors = result.model(key=tmp_path / "owner.pem", ask=lambda: "sesame", as_="torch")
        assert tensors["w"].tolist() == WEIGHTS["w"].tolist()
        assert result.weights is None
        assert result.folder is None


def test_a_model_is_listed_and_downloaded_sealed(login: Path, tmp_path: Path) -> None:
    with fedlearn.connect(login) as coordinator:
        (kept,) = coordinator.models()
        found = coordinator.download("alpha", tmp_path / "one.flsw")
        same = coordinator.job("alpha").result().download(tmp_path / "two.flsw")
        with pytest.raises(ConfigError, match="exists"):
            coordinator.download("alpha", tmp_path / "one.flsw")
    assert found == kept
    assert same.read_bytes() == (tmp_path / "one.flsw").read_bytes()
    assert WEIGHTS["w"].tobytes() not in same.read_bytes()


def test_the_result_of_a_run_is_not_that_of_a_later_one(
    login: Path, tmp_path: Path, listeners: DeploymentListeners
) -> None:
    (first,) = listeners.store.versions("alpha")
    later = {"w": WEIGHTS["w"] + 1}
    listeners.store.write("alpha.2", later, round=1, recipients=first.recipients)
    with fedlearn.connect(login) as coordinator:
        result = coordinator.job("alpha@1").result()
        file = result.download(tmp_path / "first.flsw")
        assert coordinator.download("alpha", tmp_path / "newest.flsw").model == "alpha.2"
    assert file.read_bytes() == first.path.read_bytes()


def test_another_key_no_key_and_another_coordinator_are_refused(
    login: Path, tmp_path: Path, listeners: DeploymentListeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fedlearn.connect(login) as coordinator:
        result = coordinator.job("alpha").result()
        with pytest.raises(ConfigError, match="sealed for the job's owner"):
            result.model()
        with pytest.raises(KeyReleaseDenied, match="not for this key"):
            result.model(key=tmp_path / "stranger.pem")
        with pytest.raises(ConfigError, match="no passphrase"):
            result.model(key=tmp_path / "owner.pem")
        with pytest.raises(ValueError, match="as_ must be"):
            result.model(key=tmp_path / "owner.pem", as_="jax")  # type: ignore[call-overload]
        other = CertificateAuthority.create("other.example", listeners.deployment.clock())
        monkeypatch.setattr(
            "fedlearn.api.sources.ca_pin", lambda ca: other.key_digest.hex(), raising=True
        )
        with pytest.raises(ModelNotAuthentic):
            result.download(tmp_path / "forged.flsw")
    assert not (tmp_path / "forged.flsw").exists()


def test_a_run_without_a_model_states_its_status(
    login: Path, tmp_path: Path, listeners: DeploymentListeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        listeners.coordinator,
        "get_job",
        lambda name: JobState(name="alpha", id="00", status=JobStatus.RUNNING),
    )
    with (
        fedlearn.connect(login) as coordinator,
        pytest.raises(JobError, match="the job alpha has no model; it is running"),
    ):
        coordinator.job("alpha").result().download(tmp_path / "none.flsw")


def test_the_ledger_is_verified_and_must_go_on_from_what_was_seen(login: Path) -> None:
    with fedlearn.connect(login) as coordinator:
        found = coordinator.verify_ledger()
        assert found.entries
        assert coordinator.job("alpha").result().verify_ledger().head == found.head
        kept = login / LEDGER_HEAD
        kept.write_bytes(kept.read_bytes()[:-40])
        with pytest.raises(LedgerError, match=LEDGER_HEAD):
            coordinator.verify_ledger()
