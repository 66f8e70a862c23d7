"""A genuine guest is admitted only where the job's policy pins what was started in it.

What a guest states about itself, the app, the job and fedlearn's own digest, is compared as well,
and never stands in for the launch measurement: its owner chooses what it states.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from attestation.errors import PolicyError
from attestation.policy.launch import require_launch_identity
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import Tier
from attestation.verifiers import verify
from fedlearn.errors import AdmissionDenied
from tests.fakes.snp_guest import ACCEPT, BOOTED, LAUNCH, SOFTWARE, Guest
from tests.harness.deployment import Deployment
from tests.vectors import keys
from tests.vectors.cases import Subject, binding, subjects

SOFTWARE_REFERENCE = f'[[reference]]\nclaim = "software"\nvalue = "{SOFTWARE.hex()}"\n'
UNPINNED = {
    "no reference": ACCEPT,
    "for tdx only": ACCEPT.replace('"snp"', '"snp", "tdx"')
    + '[[reference]]\nclaim = "mrtd"\nvalue = "01"\ntee = "tdx"\n',
    "launch of another TEE": f'{ACCEPT}[[reference]]\nclaim = "launch"\n'
    f'value = "{BOOTED.hex()}"\ntee = "azure-vtpm"\n',
    "an event": f'{ACCEPT}[[reference]]\nclaim = "event"\nvalue = "{BOOTED.hex()}"\n',
    "require only": f'{ACCEPT}[require]\nclaims = ["app", "job", "launch"]\n',
    "software": ACCEPT + SOFTWARE_REFERENCE,
    "host data": f'{ACCEPT}[[reference]]\nclaim = "host_data"\nvalue = "{"00" * 32}"\n',
    "zero": f'{ACCEPT}[[reference]]\nclaim = "launch"\nvalue = "{"00" * 48}"\n',
}


@pytest.mark.parametrize("policy", UNPINNED.values(), ids=UNPINNED)
def test_a_policy_that_pins_no_launch_admits_nobody(deployment: Deployment, policy: str) -> None:
    guest = Guest(deployment, policy)
    with pytest.raises(AdmissionDenied) as denied:
        deployment.gate.admit(guest.request(), peer="ip:test")
    assert "launch_identity" in {item["claim"] for item in denied.value.findings}
    assert deployment.nodes.alive == {}
    with pytest.raises(PolicyError, match="nothing pins"):
        require_launch_identity(guest.job.policy)


def test_the_same_guest_is_admitted_where_its_launch_is_pinned(deployment: Deployment) -> None:
    guest = Guest(deployment, ACCEPT + SOFTWARE_REFERENCE + LAUNCH)
    require_launch_identity(guest.job.policy)
    deployment.gate.admit(guest.request(), peer="ip:test")
    assert len(deployment.nodes.alive) == 1


@pytest.mark.parametrize("claim", ["app", "job", "software"])
def test_what_a_pinned_launch_states_is_compared_as_well(
    deployment: Deployment, claim: str
) -> None:
    other = f'[[reference]]\nclaim = "{claim}"\nvalue = "{"01" * 32}"\n'
    guest = Guest(deployment, ACCEPT + LAUNCH + other)
    with pytest.raises(AdmissionDenied) as denied:
        deployment.gate.admit(guest.request(), peer="ip:test")
    [finding] = denied.value.findings
    assert (finding["claim"], finding["origin"]) == (claim, "self-reported")


@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
def test_the_gate_affirms_no_kind_of_evidence_without_a_pinned_launch(
    deployment: Deployment, subject: Subject
) -> None:
    """The gate's own findings about app and job are affirming in both cases."""
    bound = binding()
    anchors = subject.policy.anchors_for(subject.trust, tee=subject.tee, now=keys.AT)
    claims = verify(subject.make(bound), binding=bound, trust=anchors, now=keys.AT)
    reported = {"app": keys.stream("app", 32), "job": keys.stream("job", 32)}
    claims = replace(claims, measurements={**claims.measurements, **reported})
    job = replace(
        deployment.jobs["alpha"], bundle_digest=reported["app"], job_digest=reported["job"]
    )

    def status(policy: AppraisalPolicy) -> Tier:
        result = deployment.gate._examiner.appraise(
            replace(job, policy=policy), "site-a", claims, b"key", keys.AT
        )
        assert result.expires <= keys.AT + timedelta(minutes=30)
        return result.status

    pinned = replace(
        subject.policy,
        references=tuple(r for r in subject.policy.references if r.claim not in reported),
    )
    assert status(pinned) is Tier.AFFIRMING
    require_launch_identity(pinned)
    for reference in pinned.references:
        rest = tuple(item for item in pinned.references if item is not reference)
        lacking = replace(pinned, references=rest)
        assert status(lacking) is Tier.CONTRAINDICATED
        with pytest.raises(PolicyError, match=f"of {subject.tee.value}"):
            require_launch_identity(lacking)
