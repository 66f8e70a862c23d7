"""The CA issues what it states, and a peer's certificate is read strictly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlearn.errors import ConfigError, StoreError, TransportError
from fedlearn.identity.spiffe import ClientId, CoordinatorId, OperatorId, SiteId, parse
from server.identity.pki import CertificateAuthority, PeerCertificate, csr_key, spki, thumbprint

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
DOMAIN = "test.example"


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(DOMAIN, NOW)


def make_csr(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *names: x509.GeneralName
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://evil/coordinator")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def issue(ca: CertificateAuthority, key: Any = None, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "job": "alpha",
        "site": "site-a",
        "client": "c1",
        "evidence_digest": b"e" * 32,
        "policy_digest": b"p" * 32,
        "now": NOW,
    }
    csr = make_csr(key or ec.generate_private_key(ec.SECP256R1()))
    return ca.issue_client(csr, **(fields | changes))


def test_a_client_certificate_states_who_for_how_long_and_on_what_evidence(
    ca: CertificateAuthority,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = issue(ca, key)
    peer = PeerCertificate.parse(issued.der)
    assert peer.id == ClientId(trust_domain=DOMAIN, job="alpha", site="site-a", client="c1")
    assert peer.thumbprint == thumbprint(spki(key.public_key()))
    assert peer.tls_key == spki(key.public_key())
    assert (peer.evidence_digest, peer.policy_digest) == (b"e" * 32, b"p" * 32)
    assert peer.serial == issued.serial
    leaf, root = x509.load_pem_x509_certificates(issued.chain_pem)
    leaf.verify_directly_issued_by(root)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(minutes=30)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert PeerCertificate.parse(issued.chain_pem) == peer


def test_nothing_of_the_request_but_its_key_gets_into_the_certificate(
    ca: CertificateAuthority,
) -> None:
    csr = make_csr(
        ec.generate_private_key(ec.SECP256R1()),
        x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/operator/root"),
        x509.DNSName("coordinator.example"),
    )
    leaf = x509.load_der_x509_certificate(ca.issue_site(csr, site="site-a", now=NOW).der)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"spiffe://{DOMAIN}/site/site-a"]
    assert "evil" not in leaf.subject.rfc4514_string()


def test_each_kind_has_its_own_id(ca: CertificateAuthority) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    site = PeerCertificate.parse(ca.issue_site(csr, site="s", now=NOW).der)
    operator = PeerCertificate.parse(ca.issue_operator(csr, name="o", now=NOW).der)
    server = PeerCertificate.parse(ca.issue_server(csr, ips=["127.0.0.1"], now=NOW).der)
    assert site.id == SiteId(trust_domain=DOMAIN, site="s")
    assert operator.id == OperatorId(trust_domain=DOMAIN, name="o")
    assert server.id == CoordinatorId(trust_domain=DOMAIN)
    assert len({site.serial, operator.serial, server.serial}) == 3


def test_a_server_certificate_is_no_client_certificate(ca: CertificateAuthority) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    leaf = x509.load_der_x509_certificate(ca.issue_server(csr, now=NOW).der)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("lifetime", [timedelta(minutes=31), timedelta(0), timedelta(seconds=-1)])
def test_a_client_lifetime_out_of_bounds_is_refused(
    ca: CertificateAuthority, lifetime: timedelta
) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        issue(ca, lifetime=lifetime)


def test_a_short_digest_is_refused(ca: CertificateAuthority) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        issue(ca, evidence_digest=b"short")


@pytest.mark.parametrize("field", ["job", "site", "client"])
def test_a_name_that_would_change_the_path_is_refused(ca: CertificateAuthority, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        issue(ca, **{field: "a/site/b"})


def test_requests_that_are_not_acceptable_are_refused_with_a_reason() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    good = make_csr(key)
    assert spki(csr_key(good)) == spki(key.public_key())
    with pytest.raises(TransportError, match="another kind of key"):
        csr_key(make_csr(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(TransportError, match="another kind of key"):
        csr_key(make_csr(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(TransportError, match="not signed by its own key"):
        csr_key(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(TransportError, match="PKCS#10"):
        csr_key(b"nonsense")
    with pytest.raises(TransportError, match="at most"):
        csr_key(good + bytes(5000))


def test_a_root_survives_being_stored_and_is_refused_with_another_key(
    ca: CertificateAuthority,
) -> None:
    loaded = CertificateAuthority.load(ca.certificate_pem, ca.private_bytes())
    assert (loaded.trust_domain, loaded.key_digest) == (DOMAIN, ca.key_digest)
    PeerCertificate.parse(issue(loaded).der)
    other = CertificateAuthority.create(DOMAIN, NOW)
    with pytest.raises(StoreError, match="do not belong together"):
        CertificateAuthority.load(ca.certificate_pem, other.private_bytes())
    with pytest.raises(StoreError, match="cannot be read"):
        CertificateAuthority.load(ca.certificate_pem, b"junk")


def test_the_roots_key_is_in_no_representation(ca: CertificateAuthority) -> None:
    assert repr(ca) == "CertificateAuthority('test.example')"


def test_a_peer_is_of_this_domain_and_within_its_time(ca: CertificateAuthority) -> None:
    peer = PeerCertificate.parse(issue(ca).der)
    assert peer.checked(trust_domain=DOMAIN, now=NOW) is peer
    with pytest.raises(TransportError, match="expired"):
        peer.checked(trust_domain=DOMAIN, now=NOW + timedelta(minutes=30))
    with pytest.raises(TransportError, match="not valid before"):
        peer.checked(trust_domain=DOMAIN, now=NOW - timedelta(minutes=30))
    with pytest.raises(TransportError, match="another trust domain"):
        peer.checked(trust_domain="other.example", now=NOW)


def foreign(
    names: list[x509.GeneralName], *, ca: bool = False, usage: x509.ObjectIdentifier | None = None
) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([usage or ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


URI = x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/site/a")


def of_version_4() -> bytes:
    """A certificate whose version field is beyond X.509's."""
    data = foreign([URI])
    return data.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (foreign([URI, URI]), "exactly one"),
        (foreign([x509.DNSName("a.example")]), "exactly one"),
        (foreign([URI, x509.DNSName("a.example")]), "other names"),
        (foreign([URI], ca=True), "CA certificate"),
        (foreign([URI], usage=ExtendedKeyUsageOID.SERVER_AUTH), "another use"),
        (foreign([x509.UniformResourceIdentifier("https://a.example/")]), "not a SPIFFE id"),
        (of_version_4(), "not one of this coordinator"),
        (b"junk", "not one of this coordinator"),
        (bytes(20_000), "too long"),
    ],
)
def test_certificates_of_another_form_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(TransportError, match=why):
        PeerCertificate.parse(data)


@pytest.mark.parametrize(
    "identity",
    [
        ClientId(trust_domain=DOMAIN, job="j", site="s", client="c"),
        SiteId(trust_domain=DOMAIN, site="s-1"),
        OperatorId(trust_domain=DOMAIN, name="o"),
        CoordinatorId(trust_domain=DOMAIN),
    ],
)
def test_an_id_reads_back_as_it_was_written(identity: object) -> None:
    assert parse(str(identity)) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://d/",
        "https://d/site/a",
        "spiffe://d/site/",
        "spiffe://d/site/A",
        "spiffe://d/site/a/",
        "spiffe://d/site/a/client/b",
        "spiffe://d/site/-a",
        "spiffe://d/site/" + "a" * 64,
        "spiffe://d/job/j/site/../client/c",
        "spiffe://d/site/a%2Fb",
        "spiffe://d/coordinator/x",
        "spiffe://D/site/a",
        "spiffe://d:1/site/a",
        "spiffe://u@d/site/a",
        "spiffe://d/site/a?x",
        "spiffe://d/site/a\n",
        "spiffe://d/site/\u0430",
        "spiffe://d/site/" + "a" * 4000,
    ],
)
def test_other_uris_are_no_ids(uri: str) -> None:
    with pytest.raises(TransportError, match="not a SPIFFE id"):
        parse(uri)
