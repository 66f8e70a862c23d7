"""Evidence that must not open the gate of a running coordinator, and what the ledger keeps."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from attestation.binding import Role
from edge.client.admission import ClientKeys, seek_admission, verify_coordinator
from edge.protocol.rpc import GateClient, enroll
from fedlearn.errors import AdmissionDenied, EnrollmentRefused, FedlearnError
from tests.fakes.misbehaving_client import MisbehavingClient
from tests.harness.federation import FederationHarness, Job

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def job(shared: FederationHarness) -> Iterator[Job]:
    """A job that waits for its client for as long as the tests take."""
    made = shared.job("gate", sites=["misbehaving", "site-b"], deadline_s=600).submit()
    yield made
    shared.operator.cancel_job("gate")


@pytest.fixture
def gate(misbehaving: MisbehavingClient) -> Iterator[GateClient]:
    with misbehaving.gate() as made:
        yield made


class Attempt:
    """Tries to be admitted and looks at what came of it."""

    def __init__(
        self,
        shared: FederationHarness,
        misbehaving: MisbehavingClient,
        job: Job,
        gate: GateClient,
    ) -> None:
        self.shared, self.misbehaving, self.job, self.gate = shared, misbehaving, job, gate

    def refused(self, match: str, *, keys: ClientKeys | None = None, **changes: object) -> Any:
        before = len(self.job.ledger("refusal"))
        request = self.misbehaving.request(
            self.job, self.gate, keys or ClientKeys.fresh(), **changes
        )
        with pytest.raises(AdmissionDenied, match=match) as denied:
            self.gate.admit(request)
        entries = self.job.ledger("refusal")
        assert len(entries) == before + 1
        assert entries[-1]["site"] == "misbehaving"
        assert (
            self.job.ledger("admission") == []
            or self.job.ledger("admission")[-1]["site"] == "site-b"
        )
        return entries[-1], denied.value


@pytest.fixture
def attempt(
    shared: FederationHarness, misbehaving: MisbehavingClient, job: Job, gate: GateClient
) -> Attempt:
    return Attempt(shared, misbehaving, job, gate)


def test_a_nonce_is_good_once(attempt: Attempt, job: Job, gate: GateClient) -> None:
    nonce = gate.challenge("gate", "misbehaving").nonce
    attempt.refused("app is", nonce=nonce, measured={"app": bytes(32)})
    # Evidence is in order now; the nonce is not any more.
    entry, _ = attempt.refused("nonce", nonce=nonce)
    assert entry["step"] == "nonce"


def test_an_answer_is_not_taken_twice(
    attempt: Attempt, misbehaving: MisbehavingClient, job: Job, gate: GateClient
) -> None:
    """The very request that was refused once for its site's voucher, sent again."""
    keys = ClientKeys.fresh()
    request = misbehaving.request(job, gate, keys, site_voucher=b"")
    with pytest.raises(AdmissionDenied, match="voucher"):
        gate.admit(request)
    with pytest.raises(AdmissionDenied, match="nonce"):
        gate.admit(request)


def test_a_nonce_of_our_own_choice_is_refused(attempt: Attempt) -> None:
    attempt.refused("nonce", nonce=hashlib.sha256(b"ours").digest())


def test_a_nonce_for_another_job_or_site_is_refused(attempt: Attempt, gate: GateClient) -> None:
    attempt.refused("nonce", nonce=gate.challenge("another", "misbehaving").nonce)
    attempt.refused("nonce", nonce=gate.challenge("gate", "site-b").nonce)


def test_evidence_for_another_key_is_refused(attempt: Attempt) -> None:
    entry, denied = attempt.refused("not genuine", bound_tls_key=ClientKeys.fresh().tls_key)
    assert entry["step"] == "verification"
    assert denied.findings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hpke_key", bytes(32)),
        ("role", Role.COORDINATOR),
        ("verifier_id", bytes(32)),
        ("node_id", "site-b"),
        ("workload", bytes(32)),
        ("nonce", bytes(32)),
    ],
)
def test_evidence_that_is_bound_to_something_else_is_refused(
    attempt: Attempt, field: str, value: str | bytes
) -> None:
    change: dict[str, Any] = {f"bound_{field}": value}
    attempt.refused("not genuine", **change)


def test_an_altered_bundle_is_refused_with_what_was_expected_and_found(
    attempt: Attempt, job: Job
) -> None:
    altered = hashlib.sha256(b"altered").digest()
    entry, denied = attempt.refused("app is", measured={"app": altered})
    finding = next(each for each in denied.findings if each["claim"] == "app")
    assert finding["actual"] == altered.hex()
    assert hashlib.sha256(job.bundle).hexdigest() in finding["expected"]
    assert finding["tier"] == "contraindicated"
    assert finding["remedy"]
    assert entry["measurements"]["app"] == altered.hex()
    assert altered.hex() in json.dumps(entry["findings"])
    (reported,) = [each for each in job.of("client.refused") if altered.hex() in each.reason][:1]
    assert reported.site == "misbehaving"


@pytest.mark.parametrize("claim", ["software", "job"])
def test_another_measurement_is_refused(attempt: Attempt, claim: str) -> None:
    _, denied = attempt.refused(f"{claim} is", measured={claim: bytes(range(32))})
    assert claim in {each["claim"] for each in denied.findings}


def test_a_voucher_of_another_site_is_refused(attempt: Attempt, shared: FederationHarness) -> None:
    from edge.protocol.identity import SiteIdentity

    other = SiteIdentity.load(shared.federation.identity_folder("site-b"))
    entry, _ = attempt.refused("does not vouch", voucher_by=other)
    assert entry["step"] == "voucher"


def test_a_site_does_not_enter_a_job_that_does_not_name_it(
    shared: FederationHarness, misbehaving: MisbehavingClient, gate: GateClient
) -> None:
    other = shared.job("gate-closed", sites=["site-a"], deadline_s=600).submit()
    try:
        with pytest.raises(AdmissionDenied, match="does not take part"):
            gate.admit(misbehaving.request(other, gate, ClientKeys.fresh()))
    finally:
        shared.operator.cancel_job("gate-closed")


def test_evidence_that_is_no_evidence_is_refused_and_not_a_crash(attempt: Attempt) -> None:
    for garbage in (b"", b"\0" * 64, b"\xff" * 5000):
        attempt.refused("malformed", evidence=garbage)


def test_machine_of_another_site_is_refused(
    attempt: Attempt,
    shared: FederationHarness,
    misbehaving: MisbehavingClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evidence from a genuine machine that is not the one the site is listed with."""
    monkeypatch.setattr(misbehaving, "machine", shared.federation.machines["site-c"])
    attempt.refused("hardware_id is .*, expected hardware of misbehaving")


def test_a_token_is_good_once(shared: FederationHarness, misbehaving: MisbehavingClient) -> None:
    with pytest.raises((EnrollmentRefused, FedlearnError)) as refused:
        enroll(misbehaving.identity.token)
    assert "used" in str(refused.value) or "redeemed" in str(refused.value)


def test_a_coordinator_that_the_policy_does_not_know_is_sent_nothing(
    shared: FederationHarness, misbehaving: MisbehavingClient, job: Job
) -> None:
    """Clients look first: the coordinator sees a nonce, and no challenge is ever asked for."""
    keys = ClientKeys.fresh()
    asked: list[bytes] = []

    def voucher(nonce: bytes, tls_key: bytes) -> bytes:
        asked.append(nonce)
        return b""

    head, _, tail = job.policy.partition("[[coordinator.reference]]")
    value = tail.split('value = "')[1].split('"')[0]
    text = head + "[[coordinator.reference]]" + tail.replace(value, "ab" * 32, 1)
    from dataclasses import replace

    from attestation.policy.parse import parse_policy

    params = replace(misbehaving.params(job, keys), policy=parse_policy(text.encode()))
    before = len(shared.ledger("challenge"))
    with (
        misbehaving.gate() as gate,
        pytest.raises(AdmissionDenied, match="does not affirm the coord"),
    ):
        seek_admission(
            gate,
            misbehaving.attester(job),
            params,
            voucher,
            now=shared.now,
        )
    assert asked == []
    assert len(shared.ledger("challenge")) == before


def test_the_configuration_stands_in_the_coordinators_evidence(
    shared: FederationHarness, misbehaving: MisbehavingClient, job: Job
) -> None:
    """Whoever chooses server.toml, and the trust anchors in it, does not do so unseen."""
    from dataclasses import replace

    from attestation.policy.parse import parse_policy

    words = ("fedlearn-server", "measure", "--config", shared.server_toml)
    measured = json.loads(shared.command(*words, "--json").stdout)
    params = misbehaving.params(job, ClientKeys.fresh())
    with misbehaving.gate() as gate:
        for value, fits in ((measured["config"], True), ("ab" * 32, False)):
            pin = f'[[coordinator.reference]]\nclaim = "config"\nvalue = "{value}"\n'
            text = job.policy + "\n" + pin
            pinned = replace(params, policy=parse_policy(text.encode()))
            if fits:
                verify_coordinator(gate, pinned, now=shared.now)
                continue
            with pytest.raises(AdmissionDenied, match="config is") as caught:
                verify_coordinator(gate, pinned, now=shared.now)
            finding = next(each for each in caught.value.findings if each["claim"] == "config")
            assert finding["actual"] == measured["config"]


def test_clients_refuse_a_coordinator_that_changed_and_nobody_is_admitted(
    shared: FederationHarness,
) -> None:
    """The same with real agents and clients: the job ends by its rule, without one admission."""
    policy = shared.policy("gate-mutual")
    head, found, tail = policy.partition("[[coordinator.reference]]")
    value = tail.split('value = "')[1].split('"')[0]
    changed = head + found + tail.replace(value, "ab" * 32, 1)
    job = shared.job("gate-mutual", policy=changed, deadline_s=6).submit()
    state = job.finish("failed")
    lost = job.of("client.lost")
    assert lost
    assert all("does not affirm the coordinator" in each.reason for each in lost)
    assert "does not affirm the coordinator" in state.detail
    assert job.ledger("admission") == job.ledger("challenge") == job.ledger("refusal") == []
    assert job.ledger("commitment") == job.ledger("round") == []


def test_the_ledger_verifies_with_all_of_that_in_it(shared: FederationHarness) -> None:
    done = shared.command("fedlearn", "ledger", "verify", "--state", shared.state, "--json")
    assert json.loads(done.stdout)["intact"] is True


@pytest.mark.long
def test_a_nonce_grows_stale(attempt: Attempt, gate: GateClient, shared: FederationHarness) -> None:
    challenge = gate.challenge("gate", "misbehaving")
    time.sleep((challenge.expires - shared.now()).total_seconds() + 1)
    entry, _ = attempt.refused("nonce", nonce=challenge.nonce)
    assert entry["step"] == "nonce"
