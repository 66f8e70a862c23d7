"""Fixtures of tests/server/identity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.trust import TrustAnchors
from server.identity.tpm_enrollment import TpmEnrollment
from tests.harness.deployment import Deployment
from tests.harness.tpm_sites import Identities, Tpms


@pytest.fixture(scope="module")
def tpms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpms]:
    """Two machines."""
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    with SoftwareTpm(here / "tpm") as first, SoftwareTpm(there / "tpm") as second:
        yield (
            TpmAttester(here / "state", tcti=first.tcti, scope="alpha"),
            TpmAttester(there / "state", tcti=second.tcti, scope="alpha"),
        )


@pytest.fixture(scope="module")
def identities(tpms: Tpms) -> Identities:
    return tpms[0].identity(), tpms[1].identity()


@pytest.fixture
def enrollment(deployment: Deployment) -> TpmEnrollment:
    return TpmEnrollment(sites=deployment.sites, trust=TrustAnchors, clock=deployment.clock)
