"""Admission: each step refuses what it must, and a client with good evidence is admitted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.attesters.sample import SampleAttester
from attestation.binding import Role
from attestation.policy.result import Tier
from fedlearn.errors import AdmissionDenied, NonceRefused, StoreError, Throttled
from fedlearn.identity.spiffe import ClientId
from server.admission.challenges import Limits
from server.identity.pki import PeerCertificate, spki
from tests.fakes.refusals import denied
from tests.harness.deployment import BUNDLE, JOB, LAUNCH, Client, Deployment, new_key


def test_a_client_with_good_evidence_is_admitted(deployment: Deployment, client: Client) -> None:
    admitted = deployment.admit(client)
    admission = admitted.admission
    peer = PeerCertificate.parse(admitted.certificate_chain)
    assert peer.id == ClientId(trust_domain="test.example", job="alpha", site="site-a", client="c1")
    assert peer.thumbprint == admission.thumbprint
    assert peer.evidence_digest == admission.evidence_digest
    assert peer.policy_digest == deployment.policy.digest == admission.policy_digest
    assert admission.result.status is Tier.AFFIRMING
    assert deployment.nodes.alive == {admission.node_id: ("alpha", client.tls_key)}
    live = deployment.registry.live(admission.thumbprint, now=deployment.clock())
    assert live == admission
    assert live.hpke_key == client.hpke_key
    assert deployment.kinds()[-2:] == ["challenge", "admission"]
    entry = deployment.last("admission")
    assert entry["key_thumbprint"] == admission.thumbprint.hex()
    assert entry["measurements"]["app"] == deployment.jobs["alpha"].bundle_digest.hex()


def test_a_nonce_is_good_once(deployment: Deployment, client: Client) -> None:
    request = deployment.request(client)
    deployment.gate.admit(request, peer="ip:test")
    with pytest.raises(NonceRefused, match="replay"):
        deployment.gate.admit(request, peer="ip:test")
    assert deployment.last("refusal")["step"] == "nonce"


def test_a_refused_attempt_uses_up_its_nonce(deployment: Deployment, client: Client) -> None:
    request = deployment.request(client, evidence=b"{}")
    denied(deployment, request, "malformed", "evidence")
    again = deployment.request(client, nonce=request.nonce)
    denied(deployment, again, "replay", "nonce")


def test_a_stale_nonce_is_refused(deployment: Deployment, client: Client) -> None:
    request = deployment.request(client)
    deployment.clock.advance(seconds=61)
    denied(deployment, request, "stale", "nonce")


def test_a_nonce_that_the_prover_chose_is_refused(deployment: Deployment, client: Client) -> None:
    denied(deployment, deployment.request(client, nonce=b"n" * 32), "unknown", "nonce")


def test_a_nonce_of_another_site_is_refused(deployment: Deployment, client: Client) -> None:
    nonce = deployment.gate.challenge("alpha", "site-b", "ip:test").nonce
    request = deployment.request(client, nonce=nonce)
    denied(deployment, request, "given out for job alpha at site site-b", "nonce")


def test_evidence_for_another_tls_key_is_refused(deployment: Deployment, client: Client) -> None:
    other = deployment.client()
    request = deployment.request(client, tls_key=other.tls_key)
    denied(deployment, request, "not genuine", "verification")


def test_evidence_for_another_hpke_key_is_refused(deployment: Deployment, client: Client) -> None:
    request = replace(deployment.request(client), hpke_key=bytes(32))
    denied(deployment, request, "not genuine", "verification")


@pytest.mark.parametrize(
    "changes",
    [
        {"role": Role.COORDINATOR},
        {"role": Role.SITE},
        {"verifier_id": hashlib.sha256(b"another coordinator").digest()},
        {"node_id": "site-b"},
        {"workload": bytes(32)},
    ],
)
def test_evidence_made_for_something_else_is_refused(
    deployment: Deployment, client: Client, changes: dict[str, Any]
) -> None:
    """Another role, relayed from another relying party, diverted site, another workload."""
    denied(deployment, deployment.request(client, **changes), "not genuine", "verification")


def test_tampered_evidence_is_refused(deployment: Deployment, client: Client) -> None:
    request = deployment.request(client)
    position = request.evidence.index(b'"quote":"') + 60
    flipped = b"A" if request.evidence[position : position + 1] != b"A" else b"B"
    evidence = request.evidence[:position] + flipped + request.evidence[position + 1 :]
    fresh = deployment.request(client, nonce=request.nonce, evidence=evidence)
    with pytest.raises(AdmissionDenied, match=r"malformed|not genuine"):
        deployment.gate.admit(fresh, peer="ip:test")
    assert deployment.nodes.alive == {}


def test_an_untrusted_development_key_is_refused(deployment: Deployment, client: Client) -> None:
    key = deployment.site_keys["site-a"]
    client.attester = SampleAttester(key, b"chip", {"app": b"a" * 32})
    denied(deployment, deployment.request(client), "not genuine", "verification")


def test_a_development_key_that_an_operator_named_counts_for_that_site_only(
    deployment: Deployment,
) -> None:
    own = new_key()
    digest = hashlib.sha256(spki(own.public_key())).digest()
    deployment.sites.drain("site-a")
    deployment.sites.approve("site-a", sample_key=digest)
    measured = {"app": BUNDLE, "job": JOB, "launch": LAUNCH}

    def client_of(site: str) -> Client:
        found = deployment.client(site=site)
        found.attester = SampleAttester(own, b"chip", measured)
        return found

    elsewhere = deployment.request(client_of("site-b"))
    denied(deployment, elsewhere, "not genuine", "verification")
    admitted = deployment.gate.admit(deployment.request(client_of("site-a")), peer="ip:test")
    assert admitted.admission.site == "site-a"


def test_the_hint_about_an_unknown_development_key_works_when_it_is_followed(
    deployment: Deployment,
) -> None:
    own = new_key()
    client = deployment.client(site="site-a")
    client.attester = SampleAttester(own, b"chip", {"app": BUNDLE, "job": JOB, "launch": LAUNCH})
    error = denied(deployment, deployment.request(client), "not genuine", "verification")
    digest = hashlib.sha256(spki(own.public_key())).digest()
    command = f"fedlearn site approve site-a --insecure-trust-sample-key {digest.hex()}"
    assert command in error.hint
    deployment.sites.approve("site-a", sample_key=digest)
    deployment.gate.admit(deployment.request(client), peer="ip:test")


def test_evidence_is_refused_when_its_development_key_was_replaced_meanwhile(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = new_key()
    digest = hashlib.sha256(spki(own.public_key())).digest()
    deployment.sites.drain("site-a")
    deployment.sites.approve("site-a", sample_key=digest)
    client = deployment.client(site="site-a")
    client.attester = SampleAttester(own, b"chip", {"app": BUNDLE, "job": JOB, "launch": LAUNCH})
    keys = iter([digest, bytes(32)])
    monkeypatch.setattr(deployment.sites, "sample_key_of", lambda site: next(keys))
    with pytest.raises(AdmissionDenied, match="development key of site site-a changed"):
        deployment.gate.admit(deployment.request(client), peer="ip:test")
    assert deployment.nodes.alive == {}


@pytest.mark.parametrize("claim", ["app", "job"])
def test_a_wrong_measurement_is_refused_and_named(deployment: Deployment, claim: str) -> None:
    job = deployment.jobs["alpha"]
    measured = {"app": job.bundle_digest, "job": job.job_digest, claim: bytes(32)}
    rogue = deployment.client(measurements=measured)
    error = denied(deployment, deployment.request(rogue), claim, "appraisal")
    named = [f for f in error.findings if f["claim"] == claim and f["tier"] == "contraindicated"]
    assert any(f["actual"] == bytes(32).hex() for f in named)
    assert error.hint
    assert deployment.last("refusal")["measurements"][claim] == bytes(32).hex()


def test_a_measurement_that_the_policy_allows_but_is_not_this_jobs_is_refused(
    deployment: Deployment,
) -> None:
    other = hashlib.sha256(b"another bundle").digest()
    policy = deployment.make_policy(extra=f'[[reference]]\nclaim = "app"\nvalue = "{other.hex()}"')
    deployment.gate.replace_policy("alpha", policy)
    job = deployment.jobs["alpha"]
    rogue = deployment.client(measurements={"app": other, "job": job.job_digest})
    denied(deployment, deployment.request(rogue), "app is", "appraisal")


def test_no_measurement_at_all_is_refused(deployment: Deployment) -> None:
    rogue = deployment.client(measurements={})
    denied(deployment, deployment.request(rogue), "app", "appraisal")


def test_hardware_that_is_not_listed_for_the_site_is_refused(deployment: Deployment) -> None:
    chip = b"chip-site-b".hex()
    policy = deployment.make_policy(extra=f'[nodes]\nsite-a = ["{chip}"]')
    deployment.gate.replace_policy("alpha", policy)
    denied(deployment, deployment.request(deployment.client()), "policy", "appraisal")


def test_a_site_that_is_not_in_the_job_is_refused(deployment: Deployment) -> None:
    client = deployment.client(job="beta")
    denied(deployment, deployment.request(client), "does not take part", "job")


def test_an_unknown_job_is_refused(deployment: Deployment) -> None:
    client = deployment.client(job="gamma")
    denied(deployment, deployment.request(client), "not open", "job")


def test_a_voucher_of_another_site_is_refused(deployment: Deployment, client: Client) -> None:
    deployment.site_keys["site-a"] = deployment.site_keys["site-b"]
    denied(deployment, deployment.request(client), "does not vouch", "voucher")


def test_a_missing_voucher_is_refused(deployment: Deployment, client: Client) -> None:
    request = deployment.request(client, site_voucher=b"")
    denied(deployment, request, "no voucher", "voucher")


def test_a_voucher_for_another_client_id_is_refused(deployment: Deployment, client: Client) -> None:
    request = replace(deployment.request(client), client="c2")
    denied(deployment, request, "does not vouch", "voucher")


def test_a_removed_site_admits_nobody(deployment: Deployment, client: Client) -> None:
    deployment.sites.remove("site-a")
    denied(deployment, deployment.request(client), "removed", "site")


def test_a_draining_site_admits_nobody_new_and_keeps_whom_it_has(
    deployment: Deployment, client: Client
) -> None:
    current = deployment.admit(client).admission
    deployment.sites.drain("site-a")
    with pytest.raises(AdmissionDenied, match="draining"):
        deployment.gate.admit(deployment.request(deployment.client()), peer="ip:test")
    deployment.gate.renew(deployment.request(client), current, peer="ip:test")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"csr": b"junk"}, "PKCS#10"),
        ({"csr": bytes(5000)}, "at most"),
        ({"hpke_key": b""}, "X25519"),
        ({"nonce": b"short"}, "32 bytes"),
        ({"job": "../alpha"}, "not a name"),
        ({"site": "x" * 9999}, "not a name"),
        ({"client": "C1"}, "not a name"),
        ({"evidence": b"\xff" * 10}, "malformed"),
        ({"evidence": bytes(4 * 1024 * 1024 + 1)}, "at most"),
        ({"site_voucher": bytes(1000)}, "too long"),
    ],
)
def test_broken_requests_are_refused_with_a_reason(
    deployment: Deployment, client: Client, changes: dict[str, Any], why: str
) -> None:
    honest = deployment.request(client)
    request = replace(honest, **changes)
    with pytest.raises(AdmissionDenied, match=why):
        deployment.gate.admit(request, peer="ip:test")
    assert deployment.nodes.alive == {}
    assert len(str(deployment.last("refusal"))) < 4000


def test_an_admission_that_cannot_be_recorded_does_not_take_place(
    deployment: Deployment, client: Client
) -> None:
    request = deployment.request(client)

    def full(kind: str, body: Mapping[str, Any]) -> None:
        raise StoreError("the disk is full")

    deployment.before_entry = full
    with pytest.raises(StoreError):
        deployment.gate.admit(request, peer="ip:test")
    assert deployment.nodes.alive == {}
    assert deployment.registry.of_job("alpha", now=deployment.clock()) == ()


def test_a_restarted_client_takes_the_place_of_the_former(
    deployment: Deployment, client: Client
) -> None:
    first = deployment.admit(client).admission
    second = deployment.admit(deployment.client()).admission
    assert second.node_id == first.node_id
    node = deployment.nodes.alive[second.node_id]
    assert node == ("alpha", second.tls_key)
    assert deployment.kinds()[-2:] == ["revocation", "admission"]
    with pytest.raises(AdmissionDenied, match="revoked: the same client was admitted again"):
        deployment.registry.live(first.thumbprint, now=deployment.clock())


def test_a_site_has_one_client_in_a_job(deployment: Deployment, client: Client) -> None:
    deployment.admit(client)
    with pytest.raises(AdmissionDenied, match="a live client in this job already"):
        deployment.gate.admit(deployment.request(deployment.client(name="c2")), peer="ip:test")


def test_floods_of_challenges_are_bounded(tmp_path: Path) -> None:
    limits = Limits(
        outstanding=20,
        outstanding_per_peer=8,
        rate=1000,
        burst=1000,
        rate_per_peer=1,
        burst_per_peer=12,
    )
    deployment = Deployment(tmp_path, limits=limits)
    given, refused = 0, 0
    for _ in range(100):
        try:
            deployment.gate.challenge("alpha", "site-a", "ip:flood")
            given += 1
        except Throttled:
            refused += 1
    assert (given, refused) == (8, 92)
    # Others are still served, up to the overall bound, and the ledger grows no further.
    for peer in range(12):
        deployment.gate.challenge("alpha", "site-a", f"ip:{peer}")
    with pytest.raises(Throttled, match="too many nonces"):
        deployment.gate.challenge("alpha", "site-a", "ip:99")
    assert deployment.kinds().count("challenge") == 20
    assert len(deployment.gate._challenges) == 20
    deployment.clock.advance(seconds=60)
    deployment.gate.challenge("alpha", "site-a", "ip:flood")
    assert len(deployment.gate._challenges) == 1


def test_floods_of_admissions_are_bounded_before_any_work(tmp_path: Path) -> None:
    limits = Limits(rate_per_peer=1, burst_per_peer=5)
    deployment = Deployment(tmp_path, limits=limits)
    request = deployment.request(deployment.client(), nonce=b"n" * 32)
    outcomes = []
    for _ in range(50):
        with pytest.raises(AdmissionDenied) as caught:
            deployment.gate.admit(request, peer="ip:test")
        outcomes.append(type(caught.value))
    assert outcomes.count(NonceRefused) == 5
    assert outcomes.count(Throttled) == 45
    assert deployment.kinds().count("refusal") == 5


def test_evidence_about_the_coordinator_is_bound_to_its_key(deployment: Deployment) -> None:
    proof = deployment.proof.prove("alpha", b"n" * 32, "ip:test")
    assert proof.evidence
    with pytest.raises(AdmissionDenied, match="32 bytes"):
        deployment.proof.prove("alpha", b"n", "ip:test")
    with pytest.raises(AdmissionDenied, match="not open"):
        deployment.proof.prove("gamma", b"n" * 32, "ip:test")
