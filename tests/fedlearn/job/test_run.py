"""The grammar of run ids and of what people type."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError, JobError, TransportError
from fedlearn.identity import spiffe
from fedlearn.job.run import RunName, checked_reference, checked_run_id
from fedlearn.job.spec import JobSpec

JOB = (
    'name = "{}"\napp = "app"\nrounds = 1\nsites = ["north"]\npolicy = "policy.toml"\n'
    f'policy_digest = "{bytes(32).hex()}"\n'
)


@pytest.mark.parametrize("run", [RunName("heart"), RunName("heart", 2), RunName("h-2", 9_999)])
def test_an_id_names_one_run(run: RunName) -> None:
    assert RunName.of_id(run.id) == run
    assert checked_reference(run.reference) == (run.name, run.number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "heart.1",  # the id of the first run is the name alone: no run has two ids
        "heart.0",
        "heart.02",
        "heart.10000",
        "heart.files",
        "heart.2.3",
        "heart@2",
        "Heart",
        "-heart",
        "heart.",
        "../heart",
        "h" * 64,
        "h" * 62 + ".2",
    ],
)
def test_what_is_no_id_of_a_run(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        checked_run_id(text)


@pytest.mark.parametrize("text", ["", "heart@", "heart@0", "heart@x", "heart@1@2", "a b", "@2"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a name") as caught:
        checked_reference(text)
    assert "NAME@2" in caught.value.hint


def test_a_file_cannot_name_a_run() -> None:
    """The coordinator numbers runs: a submission that names one could pass as another."""
    with pytest.raises(ConfigError, match="name: "):
        JobSpec.from_toml(JOB.format("heart.2"))


def test_a_run_has_a_digest_of_its_own_and_reads_back() -> None:
    job = JobSpec.from_toml(JOB.format("heart"))
    again = job.as_run(RunName("heart", 2))
    assert job.as_run(RunName("heart")) is job
    assert again.digest() != job.digest()
    assert JobSpec.from_json(again.to_json()) == again
    with pytest.raises(JobError, match="is not a name"):
        JobSpec.from_json(again.to_json().replace("heart.2", "heart.1"))


def test_a_client_of_a_run_has_a_spiffe_id_of_its_own() -> None:
    names = {"trust_domain": "hospitals.example", "site": "north", "client": "c1"}
    first, second = (spiffe.ClientId(job=RunName("heart", n).id, **names) for n in (1, 2))
    assert str(second) == "spiffe://hospitals.example/job/heart.2/site/north/client/c1"
    assert spiffe.parse(str(second)) == second != first
    for forged in ("heart.1", "heart@2", "heart.2.2"):
        with pytest.raises(TransportError, match="not a SPIFFE id"):
            spiffe.parse(str(second).replace("heart.2", forged))
