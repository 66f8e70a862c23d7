"""Every key of every file of fedlearn states what it means, for the tables of the documentation."""

from __future__ import annotations

import pytest

from attestation.config import describe
from attestation.policy.model import AppraisalPolicy
from edge.config.site import SiteConfig
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.job.spec import JobSpec
from server.config import ServerConfig


@pytest.mark.parametrize(
    "model", [AppraisalPolicy, ExperimentSpec, JobSpec, ServerConfig, SiteConfig]
)
def test_every_key_has_a_meaning(model: type) -> None:
    found = list(describe(model))
    assert [f"{item.table}.{item.key}" for item in found if not item.meaning] == []
    assert len({(item.table, item.key) for item in found}) == len(found)


def test_a_policys_keys_are_described_as_they_stand_in_its_file() -> None:
    found = {(item.table, item.key): item for item in describe(AppraisalPolicy)}
    assert found["", "reference"].contents == "reference[]"
    assert found["reference[]", "claim"].default is None
    assert found["freshness", "lifetime_s"].default == "1800"
    assert found["freshness", "max_age_s"].default == ""
    assert found["tdx", "require_attributes"].default == '["sept_ve_disable"]'
    assert found["snp", "max_vmpl"].type == "a whole number from 0 to 3"
    assert found["snp", "require_single_socket"].meaning.endswith("limited to one socket")
