"""A site proves that its attestation key is in its TPM, or waits for the operator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import AttesterError, EndorsementError, EvidenceError
from attestation.tpm.credential import TpmIdentity
from attestation.trust import TrustAnchors
from edge.agent.tpm_activation import prove_tpm
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import ControlClient, GateClient, TpmChallenge, enroll
from fedlearn.errors import (
    ConfigError,
    EnrollmentRefused,
    NonceRefused,
    TransportError,
)
from fedlearn.identity.join import JoinToken
from server.identity.site import SiteStatus
from server.identity.site_registry import SiteRegistry
from server.identity.tpm_enrollment import TpmEnrollment
from tests.harness.deployment import Deployment, key_pem, new_csr, new_key
from tests.harness.listeners import DeploymentListeners
from tests.harness.tpm_sites import Identities, Tpms, invite

pytestmark = pytest.mark.swtpm


def control(listeners: DeploymentListeners, name: str) -> ControlClient:
    key = listeners.deployment.site_keys[name]
    issued = listeners.deployment.ca.issue_site(
        new_csr(key), site=name, now=listeners.deployment.clock()
    )
    return ControlClient(
        listeners.control,
        roots=listeners.deployment.ca.certificate_pem,
        chain=issued.chain_pem,
        key=key_pem(key),
    )


def test_a_site_proves_its_tpm_over_the_wire(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities
) -> None:
    sites: SiteRegistry = listeners.deployment.sites
    identity = identities[0]
    invite(listeners.deployment, "site-t", identity.ek_digest)
    assert sites.tpm_of("site-t") is None
    with control(listeners, "site-t") as site:
        assert prove_tpm(site, tpms[0], site="site-t") == "invitation"
        assert prove_tpm(site, tpms[0], site="site-t") == "invitation"
    proven = sites.tpm_of("site-t")
    assert proven is not None
    assert (proven.ek, proven.ak) == (identity.ek_digest, identity.ak_digest)
    assert sites.site_of_ak(identity.ak_digest) == "site-t"
    entries = [body for kind, body in listeners.deployment.entries if kind == "site"]
    assert len(entries) == 1, "what is known already is not written again"
    assert entries[0]["tpm"]["ak"] == identity.ak_digest.hex()


def test_what_was_proven_outlives_a_restart(
    deployment: Deployment, enrollment: TpmEnrollment, tpms: Tpms, identities: Identities
) -> None:
    invite(deployment, "site-t", identities[0].ek_digest)
    asked = enrollment.propose("site-t", identities[0].to_bytes())
    enrollment.prove("site-t", asked.challenge, tpms[0].activate(asked.blob))
    again = SiteRegistry(
        entries=deployment.site_entries(),
        address="127.0.0.1:9443",
        ca_pin=bytes(32),
        clock=deployment.clock,
        record=deployment.record,
    )
    proven = again.tpm_of("site-t")
    assert proven is not None
    assert proven.ak == identities[0].ak_digest


def test_a_wrong_secret_proves_nothing_and_is_in_the_ledger(
    deployment: Deployment, enrollment: TpmEnrollment, identities: Identities
) -> None:
    invite(deployment, "site-t", identities[0].ek_digest)
    asked = enrollment.propose("site-t", identities[0].to_bytes())
    with pytest.raises(EnrollmentRefused, match="does not hold this attestation key"):
        enrollment.prove("site-t", asked.challenge, bytes(32))
    assert deployment.sites.tpm_of("site-t") is None
    entry = deployment.last("enrollment")
    assert (entry["site"], entry["outcome"]) == ("site-t", "refused")
    assert entry["ek"] == identities[0].ek_digest.hex()


def test_an_answer_counts_once_and_in_time(
    deployment: Deployment, enrollment: TpmEnrollment, tpms: Tpms, identities: Identities
) -> None:
    invite(deployment, "site-t", identities[0].ek_digest)
    asked = enrollment.propose("site-t", identities[0].to_bytes())
    secret = tpms[0].activate(asked.blob)
    with pytest.raises(NonceRefused):
        enrollment.prove("site-a", asked.challenge, secret)
    assert enrollment.prove("site-t", asked.challenge, secret).accepted
    with pytest.raises(NonceRefused, match="used before"):
        enrollment.prove("site-t", asked.challenge, secret)
    # Asking anew voids the former challenge, and both lapse.
    former = enrollment.propose("site-t", identities[0].to_bytes())
    asked = enrollment.propose("site-t", identities[0].to_bytes())
    with pytest.raises(NonceRefused):
        enrollment.prove("site-t", former.challenge, secret)
    deployment.clock.advance(seconds=61)
    with pytest.raises(NonceRefused, match="stale"):
        enrollment.prove("site-t", asked.challenge, secret)


def test_a_wrong_answer_uses_the_challenge_up(
    deployment: Deployment, enrollment: TpmEnrollment, tpms: Tpms, identities: Identities
) -> None:
    invite(deployment, "site-t", identities[0].ek_digest)
    asked = enrollment.propose("site-t", identities[0].to_bytes())
    with pytest.raises(EnrollmentRefused):
        enrollment.prove("site-t", asked.challenge, b"")
    with pytest.raises(NonceRefused):
        enrollment.prove("site-t", asked.challenge, tpms[0].activate(asked.blob))


def test_the_attestation_key_of_another_tpm_is_not_proven(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities
) -> None:
    invite(listeners.deployment, "site-t", identities[0].ek_digest)

    class Mixed:
        """Our endorsement key, and the attestation key of a machine elsewhere."""

        def identity(self) -> TpmIdentity:
            return replace(identities[0], ak=identities[1].ak)

        def activate(self, blob: bytes) -> bytes:
            return tpms[0].activate(blob)

    with control(listeners, "site-t") as site:
        with pytest.raises(AttesterError, match="activatecredential"):
            prove_tpm(site, Mixed(), site="site-t")
        asked = site.propose_tpm(Mixed().identity().to_bytes())
        for guess in (b"", bytes(32), asked.blob[-32:]):
            with pytest.raises((EnrollmentRefused, NonceRefused)):
                site.prove_tpm(asked, guess)
    assert listeners.deployment.sites.tpm_of("site-t") is None


def test_malformed_identities_and_keys_that_sign_anything_are_refused(
    listeners: DeploymentListeners, identities: Identities
) -> None:
    honest = identities[0]
    with control(listeners, "site-a") as site:
        for junk in (b"", b"FLTI\x01", honest.to_bytes()[:-1], bytes(70_000)):
            with pytest.raises(EvidenceError):
                site.propose_tpm(junk)
        with pytest.raises(EndorsementError, match="restricted signing key"):
            site.propose_tpm(replace(honest, ak=honest.ek).to_bytes())
        with pytest.raises(NonceRefused):
            site.prove_tpm(TpmChallenge(challenge=b"", blob=b""), b"")


def test_an_endorsement_key_that_nobody_knows_waits_for_the_operator(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities
) -> None:
    sites: SiteRegistry = listeners.deployment.sites
    listeners.deployment.admit(listeners.deployment.client())
    with control(listeners, "site-a") as site:
        with pytest.raises(TransportError, match="waits until the endorsement key") as caught:
            prove_tpm(site, tpms[0], site="site-a")
        assert identities[0].ek_digest.hex() in caught.value.hint
        assert sites.show("site-a").status is SiteStatus.PENDING
        assert sites.tpm_of("site-a") is None
        assert listeners.deployment.nodes.alive == {}, "its clients ended"
        with pytest.raises(TransportError, match="pending"):
            prove_tpm(site, tpms[0], site="site-a")
        sites.approve("site-a")
        # It had proven that both keys live together; the approval was all that was missing.
        proven = sites.tpm_of("site-a")
        assert proven is not None
        assert (proven.ak, proven.endorsement) == (identities[0].ak_digest, "operator")
        assert prove_tpm(site, tpms[0], site="site-a") == "operator"


def test_a_pinned_attestation_key_needs_no_approval(
    deployment: Deployment, tpms: Tpms, identities: Identities
) -> None:
    trust = TrustAnchors(tpm_aks=frozenset({identities[0].ak_digest}))
    enrollment = TpmEnrollment(sites=deployment.sites, trust=lambda: trust, clock=deployment.clock)
    asked = enrollment.propose("site-a", identities[0].to_bytes())
    outcome = enrollment.prove("site-a", asked.challenge, tpms[0].activate(asked.blob))
    assert (outcome.accepted, outcome.endorsement) == (True, "pinned")
    assert deployment.sites.show("site-a").status is SiteStatus.ACTIVE


def test_another_endorsement_key_sends_the_site_back(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities
) -> None:
    sites: SiteRegistry = listeners.deployment.sites
    invite(listeners.deployment, "site-t", identities[0].ek_digest)
    with control(listeners, "site-t") as site:
        prove_tpm(site, tpms[0], site="site-t")
        with pytest.raises(TransportError, match="waits until"):
            prove_tpm(site, tpms[1], site="site-t")
        assert sites.show("site-t").status is SiteStatus.PENDING
        assert sites.tpm_of("site-t") is None, "the former key counts no more"
        with pytest.raises(ConfigError, match="another endorsement key than before") as caught:
            sites.approve("site-t")
        assert f"--ek {identities[1].ek_digest.hex()}" in caught.value.hint
        with pytest.raises(ConfigError, match="has shown"):
            sites.approve("site-t", ek=bytes(32))
        assert sites.approve("site-t", ek=identities[1].ek_digest).status is SiteStatus.ACTIVE
        assert prove_tpm(site, tpms[1], site="site-t") == "operator"


def test_the_former_machine_may_be_meant(
    deployment: Deployment, enrollment: TpmEnrollment, tpms: Tpms, identities: Identities
) -> None:
    invite(deployment, "site-t", identities[0].ek_digest)
    asked = enrollment.propose("site-t", identities[1].to_bytes())
    assert not enrollment.prove("site-t", asked.challenge, tpms[1].activate(asked.blob)).accepted
    deployment.sites.approve("site-t", ek=identities[0].ek_digest)
    known = deployment.sites.tpm("site-t")
    assert (known.ek, known.shown_ek, known.ak) == (identities[0].ek_digest, b"", b"")


def test_one_tpm_speaks_for_one_site(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities
) -> None:
    sites: SiteRegistry = listeners.deployment.sites
    invite(listeners.deployment, "site-t", identities[0].ek_digest)
    with control(listeners, "site-t") as site, control(listeners, "site-a") as other:
        prove_tpm(site, tpms[0], site="site-t")
        with pytest.raises(EnrollmentRefused, match="belongs to site site-t already"):
            prove_tpm(other, tpms[0], site="site-a")
    assert sites.show("site-a").status is SiteStatus.ACTIVE
    with pytest.raises(EnrollmentRefused, match="belongs to site site-t"):
        sites.invitations.create_token("site-u", ek=identities[0].ek_digest)
    sites.remove("site-t")
    assert sites.site_of_ak(identities[0].ak_digest) is None
    assert sites.invitations.create_token("site-u", ek=identities[0].ek_digest)


def test_a_removed_site_proves_nothing(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities
) -> None:
    invite(listeners.deployment, "site-t", identities[0].ek_digest)
    with control(listeners, "site-t") as site:
        asked = site.propose_tpm(identities[0].to_bytes())
        secret = tpms[0].activate(asked.blob)
        listeners.deployment.sites.remove("site-t")
        with pytest.raises(TransportError, match="removed"):
            site.prove_tpm(asked, secret)
    with pytest.raises(EnrollmentRefused, match="removed"):
        listeners.deployment.sites.tpms.prove(
            "site-t", replace_proven(identities[0]), certificate="none"
        )
    assert listeners.deployment.sites.tpm_of("site-t") is None


def replace_proven(identity: TpmIdentity) -> Any:
    from attestation.tpm.credential import ProvenKey

    return ProvenKey(ak=identity.ak_digest, ek=identity.ek_digest, endorsement="certificate")


def test_the_operator_sees_the_key_before_the_first_approval(
    listeners: DeploymentListeners, tpms: Tpms, identities: Identities, tmp_path: Path
) -> None:
    sites: SiteRegistry = listeners.deployment.sites
    made = sites.invitations.create_token("site-t")
    token = JoinToken(
        address=listeners.gate, site="site-t", ca_pin=made.ca_pin, secret=made.secret
    ).encode()
    shown = identities[0].to_bytes()
    identity = enroll(token, tpm=shown)
    assert identity.pending
    assert sites.tpm("site-t").shown_ek == identities[0].ek_digest
    assert sites.tpm("site-t").ak == b"", "a claim alone proves nothing"
    with GateClient.connect(listeners.gate, ca_pin=made.ca_pin) as gate:
        with pytest.raises(EvidenceError):
            gate.enroll(token, new_csr(identity.key), b"junk")
    sites.approve("site-t", ek=identities[0].ek_digest)
    identity = replace(
        enroll(token, identity=identity, tpm=shown), control_address=listeners.control
    )
    identity.save(tmp_path / "site")
    with ControlClient.of_site(SiteIdentity.load(tmp_path / "site")) as site:
        assert prove_tpm(site, tpms[0], site="site-t") == "operator"


def test_the_operator_is_shown_the_tpm(
    listeners: DeploymentListeners,
    identities: Identities,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fedlearn.cli import main
    from fedlearn.identity.login import OperatorLogin

    chain, key = listeners.deployment.operator()
    OperatorLogin(
        address=listeners.control,
        ca=listeners.deployment.ca.certificate_pem,
        chain=chain,
        key=key_pem(key),
    ).save(tmp_path / "operator")

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main.main(["site", *arguments, "--operator", str(tmp_path / "operator")])
        received = capsys.readouterr()
        return f"{ended.value.code or 0} {received.out}{received.err}"

    ek = identities[0].ek_digest
    assert run("token", "site-t", "--ek", "nonsense").startswith("1 ")
    made = json.loads(run("token", "site-t", "--json").removeprefix("0 "))
    sites: SiteRegistry = listeners.deployment.sites
    sites.invitations.enroll(made["token"], new_csr(new_key()))
    sites.tpms.show("site-t", ek=ek, certificate="none")
    assert f"{ek.hex()}, which waits for approval" in run("show", "site-t")
    assert "has shown" in run("approve", "site-t", "--ek", bytes(32).hex())
    assert f"bound to the endorsement key {ek.hex()}" in run("approve", "site-t")
    assert "its evidence is not accepted yet" in run("show", "site-t")
