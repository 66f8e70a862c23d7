"""A client and a site reach admission over real TLS, and refuse who is not the coordinator."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from edge.client.admission import (
    AdmissionParams,
    ClientKeys,
    _answer,
    control_of,
    renew_admission,
    seek_admission,
    verify_coordinator,
)
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import AdmittedClient, ControlClient, GateClient, enroll
from edge.protocol.site_stream import Reports, Start, Stop
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    EnrollmentRefused,
    KeyReleaseDenied,
    NonceRefused,
    TransportError,
)
from fedlearn.identity.admission import AdmitRequest
from fedlearn.identity.join import JoinToken
from fedlearn.identity.voucher import sign_voucher
from fedlearn.job.phase import Phase
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.pinning import fetch_pinned
from server.identity.pki import spki
from server.rpc import StartOrder, StopOrder
from tests.harness.deployment import Deployment, key_pem, new_csr, new_key
from tests.harness.listeners import DeploymentListeners


class Site:
    """One site's client, ready to seek admission."""

    def __init__(
        self, listeners: DeploymentListeners, name: str = "site-a", job: str = "alpha"
    ) -> None:
        self.deployment = listeners.deployment
        client = self.deployment.client(site=name, job=job)
        self.attester = client.attester
        self.site_key = self.deployment.site_keys[name]
        self.params = AdmissionParams(
            job=job,
            site=name,
            client="c1",
            workload=self.deployment.jobs["alpha"].workload,
            keys=ClientKeys.fresh(),
            policy=self.deployment.policy,
            trust=self.deployment.trust,
        )
        self.gate = GateClient.connect(listeners.gate, ca_pin=self.deployment.ca.key_digest)

    def voucher(self, nonce: bytes, tls_key: bytes) -> bytes:
        return sign_voucher(
            self.site_key,
            job=self.params.job,
            site=self.params.site,
            client=self.params.client,
            nonce=nonce,
            tls_key=tls_key,
        )

    def seek(self) -> AdmittedClient:
        return seek_admission(
            self.gate, self.attester, self.params, self.voucher, now=self.deployment.clock
        )

    def control(self, listeners: DeploymentListeners, admitted: AdmittedClient) -> ControlClient:
        admitted = replace(admitted, control_address=listeners.control)
        return control_of(self.gate, admitted, self.params.keys)


@pytest.fixture
def site(listeners: DeploymentListeners) -> Iterator[Site]:
    made = Site(listeners)
    yield made
    made.gate.close()


def test_a_client_verifies_the_coordinator_and_is_admitted(
    listeners: DeploymentListeners, site: Site
) -> None:
    admitted = site.seek()
    leaf = x509.load_pem_x509_certificates(admitted.chain)[0]
    uris = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uris.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://test.example/job/alpha/site/site-a/client/c1"
    ]
    assert admitted.expires - datetime.now(UTC) <= timedelta(minutes=30)
    assert admitted.renew_after < admitted.expires
    assert admitted.node_id in listeners.deployment.nodes.alive
    with site.control(listeners, admitted) as control:
        wrapped = control.release_key("alpha", 1, b"file")
        assert wrapped == b"wrapped for " + site.params.keys.hpke_key
        assert control.commit_data("alpha", root=bytes(32), records=3, examples=3) == 42
        with pytest.raises(KeyReleaseDenied) as caught:
            control.release_key("beta", 1, b"file")
        assert caught.value.hint == "ask"


def test_a_client_renews_on_its_connection(listeners: DeploymentListeners, site: Site) -> None:
    admitted = site.seek()
    with site.control(listeners, admitted) as control:
        renewed = renew_admission(site.gate, control, site.attester, site.params)
    assert renewed.node_id == admitted.node_id
    assert renewed.chain != admitted.chain
    assert listeners.deployment.kinds()[-1] == "renewal"


def test_a_failed_renewal_quarantines_and_states_why(
    listeners: DeploymentListeners, site: Site
) -> None:
    admitted = site.seek()
    rogue = listeners.deployment.client(measurements={"app": bytes(32), "job": bytes(32)})
    with site.control(listeners, admitted) as control:
        with pytest.raises(AdmissionDenied, match="app") as caught:
            renew_admission(site.gate, control, rogue.attester, site.params)
        assert any(finding["claim"] == "app" for finding in caught.value.findings)
        with pytest.raises(AdmissionDenied, match="quarantined"):
            control.release_key("alpha", 1, b"file")
    assert listeners.deployment.nodes.alive == {}


def test_a_client_does_not_renew_for_another(listeners: DeploymentListeners, site: Site) -> None:
    admitted = site.seek()
    other = Site(listeners, name="site-b")
    other.seek()
    with site.control(listeners, admitted) as control, other.gate:
        with pytest.raises(AdmissionDenied, match="given out for job alpha at site site-a"):
            renew_admission(other.gate, control, other.attester, other.params)
    site = Site(listeners)
    admitted = site.seek()
    with site.control(listeners, admitted) as control, site.gate:
        # With a nonce for the other one it gets further, and not far enough.
        challenge = site.gate.challenge("alpha", "site-b")
        request = _answer(challenge, site.gate, other.attester, other.params, other.voucher)
        with pytest.raises(AdmissionDenied, match="cannot renew another client"):
            control.renew(request)


def test_a_wrong_measurement_is_refused_with_findings_on_the_wire(
    listeners: DeploymentListeners, site: Site
) -> None:
    measured = {"app": bytes(32), "job": listeners.deployment.jobs["alpha"].job_digest}
    site.attester = listeners.deployment.client(measurements=measured).attester
    with pytest.raises(AdmissionDenied) as caught:
        site.seek()
    finding = next(item for item in caught.value.findings if item["claim"] == "app")
    assert finding["actual"] == bytes(32).hex()
    assert caught.value.hint
    assert listeners.deployment.nodes.alive == {}


def test_a_voucher_of_another_site_is_refused(listeners: DeploymentListeners, site: Site) -> None:
    site.site_key = listeners.deployment.site_keys["site-b"]
    with pytest.raises(AdmissionDenied, match="does not vouch"):
        site.seek()


def test_a_replayed_request_is_refused(listeners: DeploymentListeners, site: Site) -> None:
    sent: list[Any] = []
    admit = site.gate.admit

    def record(request: AdmitRequest) -> Any:
        sent.append(request)
        return admit(request)

    site.gate.admit = record  # type: ignore[method-assign]
    site.seek()
    with pytest.raises(NonceRefused, match="replay"):
        admit(sent[0])


def nothing_was_sent(deployment: Deployment) -> None:
    assert "challenge" not in deployment.kinds()
    assert "refusal" not in deployment.kinds()


def test_a_coordinator_with_a_wrong_measurement_is_refused(
    listeners: DeploymentListeners, site: Site
) -> None:
    listeners.running._gate_service._proof = listeners.deployment.make_proof(app=bytes(32))
    with pytest.raises(AdmissionDenied, match="does not affirm the coordinator") as caught:
        site.seek()
    assert any(item["claim"] == "app" for item in caught.value.findings)
    nothing_was_sent(listeners.deployment)


def test_a_policy_that_demands_nothing_of_a_coordinator_trusts_none(
    listeners: DeploymentListeners, site: Site
) -> None:
    policy = listeners.deployment.make_policy(coordinator=None)
    site.params = replace(site.params, policy=policy)
    with pytest.raises(AdmissionDenied, match="does not state what a coordinator must prove"):
        site.seek()
    nothing_was_sent(listeners.deployment)


def test_evidence_of_a_coordinator_for_another_key_is_refused(
    listeners: DeploymentListeners, site: Site
) -> None:
    """Evidence of the true coordinator, relayed by somebody with another server key."""
    proof = listeners.deployment.make_proof()
    proof._tls_key = spki(new_key().public_key())
    listeners.running._gate_service._proof = proof
    with pytest.raises(AdmissionDenied, match="not genuine"):
        verify_coordinator(site.gate, site.params, now=listeners.deployment.clock)
    nothing_was_sent(listeners.deployment)


def test_a_development_key_of_a_coordinator_that_the_site_did_not_name_is_refused_by_digest(
    listeners: DeploymentListeners, site: Site
) -> None:
    known = listeners.deployment.trust
    site.params = replace(site.params, trust=replace(known, sample_keys=frozenset()))
    with pytest.raises(AdmissionDenied, match="not a trusted development key") as caught:
        verify_coordinator(site.gate, site.params, now=listeners.deployment.clock)
    (digest,) = known.sample_keys
    assert digest.hex() in str(caught.value)
    assert "insecure_sample_keys in [trust] of site.toml" in caught.value.hint
    nothing_was_sent(listeners.deployment)


def test_replayed_evidence_of_a_coordinator_is_refused(
    listeners: DeploymentListeners, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = listeners.deployment.proof.prove("alpha", b"o" * 32, "ip:test")
    monkeypatch.setattr(listeners.running._gate_service._proof, "prove", lambda *_: old)
    with pytest.raises(AdmissionDenied, match="not genuine"):
        verify_coordinator(site.gate, site.params, now=listeners.deployment.clock)


def test_another_ca_than_the_pinned_is_refused(listeners: DeploymentListeners) -> None:
    with pytest.raises(TransportError, match="does not have the pinned key"):
        GateClient.connect(listeners.gate, ca_pin=hashlib.sha256(b"other").digest())


def test_a_channel_reaches_the_pinned_server_only(listeners: DeploymentListeners) -> None:
    """A second certificate of the same CA, with the same names, is somebody else."""
    pinned = GateClient.connect(listeners.gate, ca_pin=listeners.deployment.ca.key_digest).pinned
    key = new_key()
    other = listeners.deployment.ca.issue_server(
        new_csr(key), ips=["127.0.0.1"], now=listeners.deployment.clock()
    )
    leaf = other.chain_pem.split(b"-----END CERTIFICATE-----\n")[0] + (
        b"-----END CERTIFICATE-----\n"
    )
    with GateClient(replace(pinned, leaf_pem=leaf)) as gate:
        with pytest.raises(TransportError, match="does not prove who it is"):
            gate.challenge("alpha", "site-a")


def test_nobody_at_the_address_is_reported_as_such() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetch_pinned(address, ca_pin=bytes(32), now=datetime.now(UTC))


def test_a_server_without_tls_is_reported_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 400 no\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TransportError, match=r"TLS|reached"):
            fetch_pinned(address, ca_pin=bytes(32), now=datetime.now(UTC))
        thread.join()


def token_for(listeners: DeploymentListeners, name: str, **options: Any) -> str:
    made = listeners.deployment.sites.invitations.create_token(name, **options)
    return JoinToken(
        address=listeners.gate, site=made.site, ca_pin=made.ca_pin, secret=made.secret
    ).encode()


def test_a_site_enrolls_is_approved_renews_and_comes_back(
    listeners: DeploymentListeners, tmp_path: Path
) -> None:
    listeners.running._gate_service._welcome = replace(
        listeners.running._gate_service._welcome, control_address=listeners.control
    )
    listeners.running._sites_service._welcome = listeners.running._gate_service._welcome
    token = token_for(listeners, "site-c")
    kept: list[SiteIdentity] = []
    waiting = enroll(token, keep=kept.append)
    assert waiting.pending
    assert kept[0].key is waiting.key
    with pytest.raises(TransportError, match="not approved"):
        ControlClient.of_site(waiting)
    waiting.save(tmp_path / "site")
    listeners.deployment.sites.approve("site-c")
    identity = enroll(token, identity=SiteIdentity.load(tmp_path / "site"))
    assert not identity.pending
    assert identity.order_key == b"order"
    identity.save(tmp_path / "site")
    loaded = SiteIdentity.load(tmp_path / "site")
    assert loaded.chain == identity.chain
    assert loaded.expires is not None
    with ControlClient.of_site(loaded) as control:
        renewed = control.renew_site(loaded)
        assert renewed.chain != loaded.chain
        assert control.fetch_bundle(bytes(32)) == listeners.coordinator.bundle


def test_a_token_that_another_key_used_is_refused(listeners: DeploymentListeners) -> None:
    token = token_for(listeners, "site-c", needs_approval=False)
    enroll(token)
    with pytest.raises(EnrollmentRefused, match="used before") as caught:
        enroll(token)
    assert "remove the site" in caught.value.hint


def test_a_token_of_another_coordinator_is_refused_before_it_is_sent(
    listeners: DeploymentListeners,
) -> None:
    made = listeners.deployment.sites.invitations.create_token("site-c")
    forged = JoinToken(
        address=listeners.gate, site="site-c", ca_pin=bytes(32), secret=made.secret
    ).encode()
    with pytest.raises(TransportError, match="pinned"):
        enroll(forged)
    assert "refused" not in str(listeners.deployment.last("enrollment"))


def test_a_mistyped_token_states_it(listeners: DeploymentListeners) -> None:
    with pytest.raises(ConfigError, match="mistyped"):
        enroll(token_for(listeners, "site-c")[:-2])


def test_orders_reach_a_site_and_reports_the_coordinator(listeners: DeploymentListeners) -> None:
    key = listeners.deployment.site_keys["site-a"]
    issued = listeners.deployment.ca.issue_site(
        new_csr(key), site="site-a", now=listeners.deployment.clock()
    )
    control = ControlClient(
        listeners.control,
        roots=listeners.deployment.ca.certificate_pem,
        chain=issued.chain_pem,
        key=key_pem(key),
    )
    reports = Reports(version="1", running=("a-0",))
    reports.capabilities('{"tee": ["tpm"]}')
    reports.workload("a-0", Phase.RUNNING, "trains")
    with control:
        orders = control.follow(reports)
        got: list[Any] = []
        reader = threading.Thread(target=lambda: got.extend(orders))
        reader.start()
        assert listeners.coordinator.connected.wait(5)
        listeners.coordinator.orders["site-a"].send(
            StartOrder(assignment_json=b"{}", signature=b"s")
        )
        listeners.coordinator.orders["site-a"].send(StopOrder(assignment="a-0", reason="done"))
        deadline = threading.Event()
        for _ in range(100):
            if len(got) == 2 and len(listeners.coordinator.calls) >= 2:
                break
            deadline.wait(0.05)
        reports.close()
        reader.join(5)
    assert got == [
        Start(assignment_json=b"{}", signature=b"s"),
        Stop(assignment="a-0", reason="done"),
    ]
    assert ("connected", ("site-a", "1", ("a-0",))) in listeners.coordinator.calls
    assert ("workload", ("site-a", "a-0", "running", "trains")) in listeners.coordinator.calls
    assert listeners.deployment.sites.show("site-a").capabilities == '{"tee": ["tpm"]}'
    for _ in range(100):
        if ("disconnected", "site-a") in listeners.coordinator.calls:
            break
        deadline.wait(0.05)
    with pytest.raises(TransportError, match="not connected"):
        listeners.coordinator.orders["site-a"].send(StopOrder(assignment="a-0", reason="late"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    token = JoinToken.fresh(address="127.0.0.1:1", site="site-c", ca_pin=bytes(32))
    SiteIdentity(
        site="site-c",
        gate_address="127.0.0.1:1",
        control_address="",
        ca_pin=bytes(32),
        ca_pem=b"",
        chain=b"",
        order_key=b"",
        key=new_key(),
        token=token.encode(),
    ).save(tmp_path / "site")
    return tmp_path / "site"


def test_an_identity_is_its_owners_only(stored: Path) -> None:
    assert stored.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in stored.iterdir())
    shown = repr(SiteIdentity.load(stored))
    assert " key=" not in shown
    assert "fedlearn-join-" not in shown
    SiteIdentity.discard(stored)
    assert not stored.exists()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("site.json", b"{", "damaged"),
        ("site.json", b"{}", "damaged"),
        ("site.key", b"junk", "damaged"),
        ("site.pem", b"junk", "damaged"),
        ("token", b"junk", "mistyped"),
        ("ca.pem", bytes(100_000), "more than"),
    ],
)
def test_a_damaged_identity_states_what_and_where(
    stored: Path, name: str, content: bytes, why: str
) -> None:
    (stored / name).write_bytes(content)
    with pytest.raises(ConfigError, match=why):
        SiteIdentity.load(stored)


def test_a_key_that_others_may_read_is_refused(stored: Path) -> None:
    (stored / "site.key").chmod(0o644)
    with pytest.raises(ConfigError, match="others on this machine") as caught:
        SiteIdentity.load(stored)
    assert "chmod 600" in caught.value.hint


def test_no_identity_states_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no site is enrolled") as caught:
        SiteIdentity.load(tmp_path)
    assert "fedlearn site enroll" in caught.value.hint
