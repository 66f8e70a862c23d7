"""Several operators: let in by a request, listed, shut out; over real gRPC with mutual TLS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fedlearn.errors import ConfigError, FedlearnError, LedgerError, TransportError
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.operator import OperatorClient
from server.identity.operators import BY_COORDINATOR, OperatorRegistry
from server.identity.peer_certificates import PeerCertificate
from tests.harness.deployment import Deployment, key_pem, new_key
from tests.harness.listeners import DeploymentListeners

OPERATOR = pb.DESCRIPTOR.services_by_name["Operator"]
DER = serialization.Encoding.DER
Login = Callable[[bytes, ec.EllipticCurvePrivateKey], OperatorClient]


@pytest.fixture
def login(listeners: DeploymentListeners) -> Iterator[Login]:
    """Make clients of operators; they are closed afterwards."""
    made: list[OperatorClient] = []

    def connect(chain: bytes, key: ec.EllipticCurvePrivateKey) -> OperatorClient:
        client = OperatorClient(
            address=listeners.control,
            ca=listeners.deployment.ca.certificate_pem,
            chain=chain,
            key=key_pem(key),
        )
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def alice(listeners: DeploymentListeners, login: Login) -> OperatorClient:
    return login(*listeners.deployment.operator("alice"))


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    common: str | None = "bob",
    *,
    names: tuple[x509.GeneralName, ...] = (),
    more: tuple[x509.NameAttribute[str], ...] = (),
    extension: x509.ExtensionType | None = None,
) -> bytes:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([*subject, *more]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(DER)


def uri(path: str) -> tuple[x509.GeneralName]:
    return (x509.UniformResourceIdentifier(f"spiffe://test.example/{path}"),)


def test_an_operator_lets_another_in(
    listeners: DeploymentListeners, login: Login, alice: OperatorClient
) -> None:
    key = new_key()
    grant = alice.add_operator("bob", request(key, names=uri("operator/bob")))
    bob = login(grant.chain, key)
    assert [job.name for job in bob.list_jobs()] == ["alpha"]
    listed = {one.name: one for one in bob.list_operators()}
    assert set(listed) == {"alice", "bob"}
    assert listed["bob"] == grant.operator
    assert (listed["bob"].by, listed["alice"].by) == ("alice", BY_COORDINATOR)
    entry = listeners.deployment.last("operator")
    assert (entry["change"], entry["operator"], entry["by"]) == ("added", "bob", "alice")
    assert entry["serial"] == grant.operator.serial
    leaf = PeerCertificate.parse(grant.chain)
    assert str(leaf.id) == "spiffe://test.example/operator/bob"


P256 = ec.generate_private_key(ec.SECP256R1())
RSA1024 = rsa.generate_private_key(public_exponent=65537, key_size=1024)
REFUSED: dict[str, tuple[bytes, str]] = {
    "no request": (b"\x30\x03\x02\x01\x00", "not PKCS#10"),
    "empty": (b"", "not PKCS#10"),
    "too long": (request(P256) + bytes(5000), "at most 4096"),
    "RSA of 1024 bits": (request(RSA1024), "another kind of key"),
    "P-384": (request(ec.generate_private_key(ec.SECP384R1())), "another kind of key"),
    "a site's id": (request(P256, names=uri("site/site-a")), "identity 'spiffe://test.example/sit"),
    "a client's id": (
        request(P256, names=uri("job/alpha/site/site-a/client/c1")),
        "identity 'spiffe://test.example/job",
    ),
    "the coordinator's id": (request(P256, names=uri("coordinator")), "identity"),
    "another operator's id": (request(P256, names=uri("operator/alice")), "identity"),
    "another domain's id": (
        request(P256, names=(x509.UniformResourceIdentifier("spiffe://else/operator/bob"),)),
        "identity",
    ),
    "its own id and a site's": (
        request(P256, names=(*uri("operator/bob"), *uri("site/site-a"))),
        "identity",
    ),
    "a DNS name": (request(P256, names=(x509.DNSName("coordinator.example"),)), "identity"),
    "a CA": (
        request(P256, extension=x509.BasicConstraints(ca=True, path_length=None)),
        "extensions",
    ),
    "another name": (request(P256, "carol"), "is for carol, not for bob"),
    "no name of ours": (request(P256, "Bob Smith"), "is not a name"),
    "more of a subject": (
        request(P256, more=(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "site-a"),)),
        "other parts",
    ),
    "two names": (
        request(P256, more=(x509.NameAttribute(NameOID.COMMON_NAME, "alice"),)),
        "other parts",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_request_for_anything_else_is_refused(
    listeners: DeploymentListeners, alice: OperatorClient, case: str
) -> None:
    csr, why = REFUSED[case]
    entries = len(listeners.deployment.entries)
    with pytest.raises(FedlearnError, match=why):
        alice.add_operator("bob", csr)
    assert [one.name for one in alice.list_operators()] == ["alice"]
    assert len(listeners.deployment.entries) == entries


def test_a_request_with_an_altered_signature_is_refused(alice: OperatorClient) -> None:
    good = request(P256)
    bad = bytearray(good)
    bad[-1] ^= 1
    with pytest.raises(TransportError, match="not signed by its own key"):
        alice.add_operator("bob", bytes(bad))
    # The signature of one key under the request of another: no proof of possession.
    other = request(ec.generate_private_key(ec.SECP256R1()))
    spki = P256.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    theirs = x509.load_der_x509_csr(other).public_key()
    stolen = other.replace(
        theirs.public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo), spki
    )
    assert stolen != other
    with pytest.raises(TransportError, match="not signed by its own key"):
        alice.add_operator("bob", stolen)
    assert len(alice.list_operators()) == 1


def test_a_key_is_used_once(login: Login, alice: OperatorClient) -> None:
    key = new_key()
    alice.add_operator("bob", request(key))
    for name in ("bob", "carol", "alice"):
        with pytest.raises(ConfigError, match="was used for operator bob before"):
            alice.add_operator(name, request(key, name))
    alice.revoke_operator(name="bob")
    with pytest.raises(ConfigError, match="was used for operator bob before"):
        alice.add_operator("bob", request(key))
    # The name may come back, with a new key.
    fresh = new_key()
    grant = alice.add_operator("bob", request(fresh))
    assert login(grant.chain, fresh).list_sites()


def test_a_name_that_is_taken_goes_to_nobody_else(login: Login, alice: OperatorClient) -> None:
    key = new_key()
    bob = login(alice.add_operator("bob", request(key)).chain, key)
    with pytest.raises(ConfigError, match="there is an operator bob already"):
        alice.add_operator("bob", request(new_key()))
    with pytest.raises(ConfigError, match="there is an operator alice already"):
        bob.add_operator("alice", request(new_key(), "alice"))
    # Its holder gets a second certificate, and ends the first by its serial.
    second = new_key()
    grant = bob.add_operator("bob", request(second))
    again = login(grant.chain, second)
    former = next(o for o in again.list_operators() if o.name == "bob" and o.by == "alice")
    assert [one.serial for one in again.revoke_operator(serial=former.serial)] == [former.serial]
    with pytest.raises(TransportError, match="operator bob was revoked"):
        bob.list_jobs()
    assert again.list_jobs()


def test_a_revoked_operator_is_refused_by_every_call_of_an_open_connection(
    listeners: DeploymentListeners, login: Login, alice: OperatorClient
) -> None:
    key = new_key()
    grant = alice.add_operator("bob", request(key))
    bob = login(grant.chain, key)
    assert bob.list_jobs()
    (ended,) = alice.revoke_operator(name="bob", reason="left us")
    assert (ended.name, ended.revoked, ended.reason) == ("bob", True, "left us")
    entry = listeners.deployment.last("operator")
    assert (entry["change"], entry["operator"], entry["by"]) == ("revoked", "bob", "alice")
    assert entry["reason"] == "left us"
    calls = len(listeners.coordinator.calls)
    assert len(OPERATOR.methods) > 15
    for method in OPERATOR.methods:
        message = getattr(pb, method.input_type.name)()
        call = getattr(bob._operator, method.name)
        with pytest.raises(grpc.RpcError, match="operator bob was revoked: left us") as caught:
            list(call(message, timeout=5)) if method.server_streaming else call(message, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name
    assert len(listeners.coordinator.calls) == calls
    # Nor on a new connection.
    with pytest.raises(TransportError, match="left us"):
        login(grant.chain, key).list_jobs()
    assert alice.list_jobs()


def test_a_revocation_ends_what_an_operator_follows(
    listeners: DeploymentListeners, login: Login, alice: OperatorClient
) -> None:
    key = new_key()
    bob = login(alice.add_operator("bob", request(key)).chain, key)
    reported: list[FedlearnError] = []

    def follow() -> None:
        try:
            for _ in bob.follow_job("alpha"):
                pass
        except FedlearnError as error:
            reported.append(error)

    watcher = threading.Thread(target=follow)
    watcher.start()
    assert listeners.coordinator.waiting.wait(5)
    alice.revoke_operator(name="bob", reason="left us")
    watcher.join(5)
    assert not watcher.is_alive()
    assert [str(error) for error in reported] == ["operator bob was revoked: left us"]
    assert listeners.coordinator.stopped.wait(5)


def test_what_an_operator_follows_ends_with_its_certificate(
    listeners: DeploymentListeners, alice: OperatorClient
) -> None:
    followed = alice.follow_job("alpha")
    assert next(followed).sequence == 1
    assert listeners.coordinator.waiting.wait(5)
    listeners.deployment.clock.advance(days=100)
    with pytest.raises(TransportError, match="expired"):
        list(followed)


def test_the_last_operator_stays(
    listeners: DeploymentListeners, login: Login, alice: OperatorClient
) -> None:
    with pytest.raises(ConfigError, match="alice is the last operator") as caught:
        alice.revoke_operator(name="alice")
    assert "fedlearn operator add" in caught.value.hint
    serial = alice.list_operators()[0].serial
    with pytest.raises(ConfigError, match="alice is the last operator"):
        alice.revoke_operator(serial=serial)
    assert alice.list_jobs()
    key = new_key()
    bob = login(alice.add_operator("bob", request(key)).chain, key)
    assert alice.revoke_operator(name="alice", reason="bye")
    with pytest.raises(TransportError, match="alice was revoked: bye"):
        alice.list_jobs()
    with pytest.raises(ConfigError, match="bob is the last operator"):
        bob.revoke_operator(name="bob")


def test_an_expired_operator_is_none_that_is_left(listeners: DeploymentListeners) -> None:
    deployment = listeners.deployment
    deployment.operator("alice")
    deployment.clock.advance(days=89)
    chain, _ = deployment.operator("bob")
    deployment.clock.advance(days=2)
    with pytest.raises(ConfigError, match="bob is the last operator"):
        deployment.operators.revoke(name="bob", by=PeerCertificate.parse(chain))


def test_a_revocation_of_nobody_is_reported(alice: OperatorClient) -> None:
    with pytest.raises(ConfigError, match="no operator with the name bob"):
        alice.revoke_operator(name="bob")
    with pytest.raises(ConfigError, match="no operator with the serial beef"):
        alice.revoke_operator(serial="beef")
    with pytest.raises(ConfigError, match="not a serial number"):
        alice.revoke_operator(serial="0x1'; --")
    with pytest.raises(ConfigError, match="by name or by serial"):
        alice.revoke_operator()
    with pytest.raises(ConfigError, match="by name or by serial"):
        alice.revoke_operator(name="bob", serial="beef")
    with pytest.raises(ConfigError, match="at most"):
        alice.revoke_operator(name="bob", reason="x" * 501)
    alice.add_operator("bob", request(new_key()))
    alice.revoke_operator(name="bob")
    with pytest.raises(ConfigError, match="bob was revoked before"):
        alice.revoke_operator(name="bob")


def test_who_is_revoked_in_the_meantime_revokes_nobody(listeners: DeploymentListeners) -> None:
    """The guard has let the call in, and then the caller is shut out."""
    deployment = listeners.deployment
    (alice, _), (bob, _), _ = (deployment.operator(name) for name in ("alice", "bob", "carol"))
    registry = deployment.operators
    registry.revoke(name="bob", by=PeerCertificate.parse(alice))
    with pytest.raises(TransportError, match="bob was revoked"):
        registry.revoke(name="carol", by=PeerCertificate.parse(bob))
    with pytest.raises(TransportError, match="bob was revoked"):
        registry.add("eve", request(new_key(), "eve"), by=PeerCertificate.parse(bob))


def reopened(
    deployment: Deployment, entries: Iterable[Mapping[str, Any]] | None = None
) -> OperatorRegistry:
    kept = [body for kind, body in deployment.entries if kind == "operator"]
    return OperatorRegistry(
        ca=deployment.ca,
        entries=kept if entries is None else entries,
        record=deployment.record,
        clock=deployment.clock,
    )


def test_a_restart_forgets_no_revocation(listeners: DeploymentListeners) -> None:
    deployment = listeners.deployment
    (alice, _), (bob, _) = (deployment.operator(name) for name in ("alice", "bob"))
    deployment.operators.revoke(name="bob", reason="left", by=PeerCertificate.parse(alice))
    again = reopened(deployment)
    assert again.list() == deployment.operators.list()
    assert again.authenticate(PeerCertificate.parse(alice)).name == "alice"
    with pytest.raises(TransportError, match="bob was revoked: left"):
        again.authenticate(PeerCertificate.parse(bob))


def test_a_certificate_that_the_register_does_not_know_is_refused(
    listeners: DeploymentListeners,
) -> None:
    deployment = listeners.deployment
    deployment.operator("alice")
    issued = deployment.ca.issue_operator(
        request(new_key(), "alice"), name="alice", now=deployment.clock()
    )
    with pytest.raises(TransportError, match="not in the registry"):
        deployment.operators.authenticate(PeerCertificate.parse(issued.der))
    site = deployment.ca.issue_site(request(new_key()), site="site-a", now=deployment.clock())
    with pytest.raises(TransportError, match="is not an operator"):
        deployment.operators.authenticate(PeerCertificate.parse(site.der))


def test_a_certificate_that_the_ledger_does_not_name_is_nobodys(
    listeners: DeploymentListeners,
) -> None:
    """Not even where no operator stands in the ledger yet: a removed ledger lets nobody in."""
    deployment = listeners.deployment
    unknown = deployment.ca.issue_operator(
        request(new_key(), "first"), name="first", now=deployment.clock()
    )
    for registry in (reopened(deployment, ()), reopened(deployment)):
        with pytest.raises(TransportError, match="not in the registry"):
            registry.authenticate(PeerCertificate.parse(unknown.der))


@pytest.mark.parametrize(
    "changes",
    [{"serial": None}, {"key_thumbprint": "xyz"}, {"expires": "soon"}, {"added_by": None}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_entry_that_cannot_be_read_stops_the_start(
    listeners: DeploymentListeners, changes: dict[str, None] | dict[str, str]
) -> None:
    deployment = listeners.deployment
    deployment.operator("alice")
    body = {**deployment.last("operator"), **changes}
    body = {key: value for key, value in body.items() if value is not None}
    with pytest.raises(LedgerError, match="an entry about an operator"):
        reopened(deployment, [body])


def test_there_is_a_bound(listeners: DeploymentListeners, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.identity.operators.MAX_OPERATORS", 2)
    deployment = listeners.deployment
    deployment.operator("alice")
    deployment.operator("bob")
    with pytest.raises(ConfigError, match="2 operators already"):
        deployment.operator("carol")
    deployment.clock.advance(seconds=timedelta(days=91).total_seconds())
    deployment.operator("carol")
