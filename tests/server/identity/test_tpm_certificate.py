"""A TPM that comes with its maker's certificate: believed under a root that was given, else not.

The maker is our own; the certificate lies in the memory of a real software TPM, where makers
put it, and is read from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.attesters.tpm2_tools import Tpm2Tools
from attestation.tpm.credential import TpmIdentity
from attestation.trust import TrustAnchors
from server.identity.site import SiteStatus
from server.identity.tpm_enrollment import TpmEnrollment
from tests.harness.deployment import Deployment

pytestmark = pytest.mark.swtpm

EK_CERTIFICATE = "0x01c0000a"
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
NOW = datetime.now(UTC)


@dataclass
class Maker:
    """A CA that certifies endorsement keys."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def maker(name: str, issuer: Maker | None = None) -> Maker:
    key = ec.generate_private_key(ec.SECP256R1())
    return Maker(certificate(name, key.public_key(), issuer, key, ca=True), key)


def certificate(
    name: str,
    public: CertificatePublicKeyTypes,
    issuer: Maker | None,
    key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    days: int = 1,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=2))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([EK_USAGE]), critical=False)
    return builder.sign(issuer.key if issuer else key, hashes.SHA256())


@dataclass
class Machine:
    """A TPM whose endorsement key ``root`` certified through ``middle``."""

    tpm: TpmAttester
    root: Maker
    middle: Maker
    identity: TpmIdentity


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    directory: Path = tmp_path_factory.mktemp("certified")
    root = maker("Test TPM Root")
    middle = maker("Test TPM Maker", root)
    with SoftwareTpm(directory / "tpm") as device:
        tpm = TpmAttester(directory / "state", tcti=device.tcti, scope="alpha")
        write_certificate(device.tcti, endorsed(tpm, middle))
        yield Machine(tpm, root, middle, tpm.identity())


def endorsed(tpm: TpmAttester, issuer: Maker, *, days: int = 1) -> bytes:
    made = certificate("", tpm.identity().ek.key, issuer, issuer.key, ca=False, days=days)
    return made.public_bytes(Encoding.DER)


def write_certificate(tcti: str, der: bytes) -> None:
    with Tpm2Tools(tcti).workspace() as work:
        work.write("certificate", der)
        how = ("-C", "o", "-s", str(len(der)), "-a", "ownerread|ownerwrite")
        work.run("nvdefine", "-Q", EK_CERTIFICATE, *how)
        work.run("nvwrite", "-Q", EK_CERTIFICATE, "-C", "o", "-i", "certificate")


def enrollment(
    deployment: Deployment, *roots: Maker, beside: tuple[bytes, ...] = ()
) -> TpmEnrollment:
    trust = TrustAnchors(tpm_ek_roots=tuple(root.der for root in roots), endorsements=beside)
    return TpmEnrollment(sites=deployment.sites, trust=lambda: trust, clock=deployment.clock)


def prove(enrolling: TpmEnrollment, machine: Machine, identity: TpmIdentity | None = None) -> Any:
    asked = enrolling.propose("site-a", (identity or machine.identity).to_bytes())
    return enrolling.prove("site-a", asked.challenge, machine.tpm.activate(asked.blob))


def test_a_certified_tpm_is_believed_at_once_and_its_evidence_counts(
    deployment: Deployment, machine: Machine
) -> None:
    assert machine.identity.ek_certificate, "it was read from the TPM's memory"
    outcome = prove(enrollment(deployment, machine.root, beside=(machine.middle.der,)), machine)
    assert (outcome.accepted, outcome.endorsement) == (True, "certificate")
    assert deployment.sites.show("site-a").status is SiteStatus.ACTIVE
    known = deployment.sites.tpm("site-a")
    assert (known.ek, known.certificate) == (machine.identity.ek_digest, "verified")
    assert deployment.last("site")["tpm"]["ek"] == machine.identity.ek_digest.hex()


@pytest.mark.parametrize("case", ["no root", "a look-alike", "no intermediate", "expired"])
def test_what_does_not_chain_to_a_given_root_waits_for_the_operator(
    deployment: Deployment, machine: Machine, case: str
) -> None:
    identity = machine.identity
    enrolling, found = {
        "no root": (enrollment(deployment), "not looked at"),
        "a look-alike": (
            enrollment(deployment, maker("Test TPM Root"), beside=(machine.middle.der,)),
            "no trusted root",
        ),
        "no intermediate": (enrollment(deployment, machine.root), "no trusted root"),
        "expired": (
            enrollment(deployment, machine.root, beside=(machine.middle.der,)),
            "expired on",
        ),
    }[case]
    if case == "expired":
        old = endorsed(machine.tpm, machine.middle, days=-1)
        identity = TpmIdentity(ek=identity.ek, ak=identity.ak, ek_certificate=old)
    outcome = prove(enrolling, machine, identity)
    assert not outcome.accepted
    assert deployment.sites.show("site-a").status is SiteStatus.PENDING
    assert deployment.sites.tpm_of("site-a") is None
    assert found in deployment.sites.tpm("site-a").certificate
    # Who the operator then believes is that very key, and it had proven itself already.
    deployment.sites.approve("site-a")
    proven = deployment.sites.tpm_of("site-a")
    assert proven is not None
    assert proven.ek == identity.ek_digest


def test_the_certificate_of_another_tpm_lends_nothing(
    deployment: Deployment, machine: Machine
) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    made = certificate("", stranger, machine.middle, machine.middle.key, ca=False)
    identity = TpmIdentity(
        ek=machine.identity.ek,
        ak=machine.identity.ak,
        ek_certificate=made.public_bytes(Encoding.DER),
    )
    enrolling = enrollment(deployment, machine.root, beside=(machine.middle.der,))
    outcome = prove(enrolling, machine, identity)
    assert not outcome.accepted
    assert "another" in deployment.sites.tpm("site-a").certificate
