"""TPM evidence of a site counts when its attestation key was proven by that site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attestation.attesters import Attester
from attestation.binding import Bound, ReportData
from attestation.evidence import Evidence
from attestation.trust import TrustAnchors
from fedlearn.errors import (
    AdmissionDenied,
)
from server.identity.tpm_enrollment import TpmEnrollment
from tests.harness.deployment import BUNDLE, JOB, Client, Deployment
from tests.harness.tpm_sites import Identities, Tpms, invite, prove

pytestmark = pytest.mark.swtpm


@pytest.fixture
def measured(deployment: Deployment, tpms: Tpms) -> Tpms:
    """A job that accepts TPM evidence; both machines have measured it."""
    for tpm in tpms:
        tpm.extend("app", BUNDLE)
        tpm.extend("job", JOB)
    return tpms


def make_job(deployment: Deployment, nodes: str = "", trust: TrustAnchors | None = None) -> Any:
    from attestation.policy.parse import parse_policy

    text = f"""
version = 1
name = "tpm"
accept = ["tpm"]
[[reference]]
claim = "app"
value = "{BUNDLE.hex()}"
[[reference]]
claim = "pcr.0"
value = "{"00" * 32}"
name = "software TPM"
{nodes}
"""
    deployment.jobs["alpha"] = replace(
        deployment.jobs["alpha"],
        policy=parse_policy(text.encode()),
        trust=trust or TrustAnchors(),
        sites=frozenset({"site-t", "site-u", "site-a"}),
    )


def client_of(deployment: Deployment, site: str, attester: Attester) -> Client:
    client = deployment.client(site=site)
    client.attester = attester
    return client


def test_evidence_counts_once_its_key_is_proven(
    deployment: Deployment, enrollment: TpmEnrollment, measured: Tpms, identities: Identities
) -> None:
    nodes = f'[nodes]\nsite-t = ["{identities[0].ek_digest.hex()}"]'
    make_job(deployment, nodes)
    invite(deployment, "site-t", identities[0].ek_digest)
    client = client_of(deployment, "site-t", measured[0])
    with pytest.raises(AdmissionDenied, match="neither proven to live in a TPM nor pinned"):
        deployment.admit(client)
    prove(deployment, enrollment, "site-t", measured[0])
    deployment.admit(client)
    assert deployment.last("admission")["hardware_id"] == identities[0].ek_digest.hex()


def test_the_policy_states_which_events_are_known(
    deployment: Deployment, enrollment: TpmEnrollment, measured: Tpms, identities: Identities
) -> None:
    from attestation.logs.eventlog import EventLog

    genuine = measured[0]

    class Longer:
        """Sends along one event more than the register has."""

        tee = genuine.tee

        def extend(self, claim: str, value: bytes) -> None:
            genuine.extend(claim, value)

        def collect(self, binding: Bound) -> Evidence:
            evidence = genuine.collect(binding)
            log = EventLog.parse(evidence.event_log)
            digests = {name: b"\x01" * size for name, size in log.sizes.items()}
            return replace(evidence, event_log=log.append(14, 6, digests, b"more").to_bytes())

    log = EventLog.parse(genuine.collect(ReportData(value=bytes(32))).event_log)
    known = "".join(
        f'[[reference]]\nclaim = "event"\nvalue = "{event.digests["sha256"].hex()}"\n'
        for event in log.events
    )
    make_job(deployment, known)
    invite(deployment, "site-t", identities[0].ek_digest)
    prove(deployment, enrollment, "site-t", genuine)
    with pytest.raises(AdmissionDenied, match=f"event {len(log.events) + 1} is the first that no"):
        deployment.admit(client_of(deployment, "site-t", Longer()))
    deployment.admit(client_of(deployment, "site-t", genuine))


def test_a_key_proven_by_one_site_vouches_for_no_other(
    deployment: Deployment, enrollment: TpmEnrollment, measured: Tpms, identities: Identities
) -> None:
    make_job(deployment)
    invite(deployment, "site-t", identities[0].ek_digest)
    invite(deployment, "site-u", identities[1].ek_digest)
    prove(deployment, enrollment, "site-t", measured[0])
    prove(deployment, enrollment, "site-u", measured[1])
    with pytest.raises(AdmissionDenied, match="neither proven"):
        deployment.admit(client_of(deployment, "site-u", measured[0]))
    deployment.admit(client_of(deployment, "site-u", measured[1]))


def test_a_key_pinned_for_all_is_only_for_the_site_that_proved_it(
    deployment: Deployment, enrollment: TpmEnrollment, measured: Tpms, identities: Identities
) -> None:
    trust = TrustAnchors(tpm_aks=frozenset(i.ak_digest for i in identities))
    make_job(deployment, trust=trust)
    invite(deployment, "site-t", identities[0].ek_digest)
    prove(deployment, enrollment, "site-t", measured[0])
    with pytest.raises(AdmissionDenied, match="that of another site's TPM"):
        deployment.admit(client_of(deployment, "site-a", measured[0]))
    assert deployment.last("refusal")["step"] == "verification"
    deployment.admit(client_of(deployment, "site-a", measured[1]))


def test_a_removed_site_takes_its_key_along(
    deployment: Deployment, enrollment: TpmEnrollment, measured: Tpms, identities: Identities
) -> None:
    make_job(deployment)
    invite(deployment, "site-t", identities[0].ek_digest)
    prove(deployment, enrollment, "site-t", measured[0])
    client = client_of(deployment, "site-t", measured[0])
    deployment.admit(client)
    deployment.sites.remove("site-t")
    with pytest.raises(AdmissionDenied):
        deployment.admit(client)
    invite(deployment, "site-t")
    with pytest.raises(AdmissionDenied, match="neither proven"):
        deployment.admit(client)
