"""The gate admits a guest with GPUs when RIM, revocation and topology are as its policy demands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.x509 import ocsp

from attestation.evidence import Evidence
from fedlearn.errors import AdmissionDenied
from tests.fakes.snp_guest import ACCEPT, LAUNCH, Guest
from tests.harness.deployment import Deployment
from tests.vectors import nvidia as made

NOW = datetime.now(UTC)
GPUS, SWITCHES = made.machine()
RIMS = (*made.rims(), made.switch_rim())
REQUIRED = (
    "[nvidia]\nrequired = true\nmin_gpus = 8\n"
    '[require]\nclaims = ["nvidia.rim", "nvidia.revocation", "nvidia.topology"]\n'
)


def answers(
    end: datetime = NOW + timedelta(hours=20), revoked: made.Authority | None = None
) -> tuple[bytes, ...]:
    subjects = [made.IDENTITY, made.RIM_CA, made.RIM_SIGNER]
    subjects += [item.identity for item in (*GPUS, *SWITCHES)]
    status = {True: ocsp.OCSPCertStatus.REVOKED, False: ocsp.OCSPCertStatus.GOOD}
    return tuple(
        made.answer(item, start=NOW - timedelta(hours=4), end=end, status=status[item is revoked])
        for item in subjects
    )


def machine(nonce: bytes) -> tuple[Evidence, ...]:
    ends, gpus = [item.pdi for item in SWITCHES], [item.pdi for item in GPUS]
    return (
        *(item.evidence(nonce, links=ends) for item in GPUS),
        *(item.evidence(nonce, links=gpus) for item in SWITCHES),
    )


def admit(
    deployment: Deployment,
    *collateral: bytes,
    devices: Callable[[bytes], tuple[Evidence, ...]] = machine,
) -> None:
    trust = replace(made.TRUST, collateral=collateral)
    guest = Guest(deployment, ACCEPT + LAUNCH + REQUIRED, devices=devices, trust=trust)
    deployment.gate.admit(guest.request(), peer="ip:test")


def test_a_whole_machine_is_admitted(deployment: Deployment) -> None:
    admit(deployment, *RIMS, *answers())
    assert len(deployment.nodes.alive) == 1


@pytest.mark.parametrize("missing", ["nvidia.rim", "nvidia.revocation"])
def test_what_is_required_and_was_not_checked_denies_it(
    deployment: Deployment, missing: str
) -> None:
    collateral = answers() if missing == "nvidia.rim" else RIMS
    with pytest.raises(AdmissionDenied) as denied:
        admit(deployment, *collateral)
    claims = {item["claim"] for item in denied.value.findings}
    assert {f"require.component[{index}].{missing}" for index in range(12)} <= claims
    assert deployment.nodes.alive == {}


DENIED = {
    "counts from .* to .*, not at": ((*RIMS, *answers(end=NOW - timedelta(hours=1))), machine),
    r"GPU 3 BROM .* was revoked at": ((*RIMS, *answers(revoked=GPUS[3].identity)), machine),
    r"no RIM is for driver 550\.90\.07": ((*RIMS[1:], *answers()), machine),
    r"no RIM is for VBIOS 96\.10\.6D\.00\.01": ((*RIMS[:2], *answers()), machine),
    "there are reports of 7": ((*RIMS, *answers()), lambda nonce: machine(nonce)[1:]),
    r"component\[0\] and component\[11\] are reports of one device": (
        (*RIMS, *answers()),
        lambda nonce: (*machine(nonce)[:-1], machine(nonce)[0]),
    ),
    "has another nonce": ((*RIMS, *answers()), lambda _: machine(bytes(32))),
}


@pytest.mark.parametrize("reason", DENIED)
def test_what_does_not_verify_denies_it(deployment: Deployment, reason: str) -> None:
    collateral, devices = DENIED[reason]
    with pytest.raises(AdmissionDenied, match=reason):
        admit(deployment, *collateral, devices=devices)
    assert deployment.nodes.alive == {}
