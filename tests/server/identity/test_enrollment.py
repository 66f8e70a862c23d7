"""A join token binds a site's name to one key, once."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    EnrollmentRefused,
    LedgerError,
    StoreError,
    TransportError,
)
from fedlearn.identity.join import JoinToken, checked_address
from server.identity.pki import PeerCertificate, spki
from server.identity.site import SiteStatus
from server.identity.site_registry import SiteRegistry
from tests.harness.deployment import Deployment, new_csr, new_key


def csr_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    made: bytes = new_csr(key)
    return made


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return new_key()


@pytest.fixture
def csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    return csr_of(key)


@pytest.fixture
def other_csr() -> bytes:
    return csr_of(new_key())


def test_a_site_enrolls_waits_and_is_approved(
    deployment: Deployment, csr: bytes, key: ec.EllipticCurvePrivateKey
) -> None:
    sites = deployment.sites
    token = sites.invitations.create_token("site-c").encode()
    assert sites.invitations.enroll(token, csr).status is SiteStatus.PENDING
    with pytest.raises(AdmissionDenied, match="pending"):
        sites.key_of("site-c", admitting=True)
    assert sites.approve("site-c").status is SiteStatus.ACTIVE
    again = sites.invitations.enroll(token, csr)
    assert again.status is SiteStatus.ACTIVE
    assert sites.key_of("site-c", admitting=True) == spki(key.public_key()) == again.key
    outcomes = [body["outcome"] for kind, body in deployment.entries if kind == "enrollment"]
    assert outcomes[-2:] == ["invited", "pending"]
    assert deployment.last("site")["status"] == "active"


def test_a_development_key_is_kept_with_its_site_and_goes_with_it(
    deployment: Deployment, csr: bytes
) -> None:
    sites, first, second = deployment.sites, b"1" * 32, b"2" * 32
    token = sites.invitations.create_token("site-c", sample_key=first).encode()
    assert sites.sample_key_of("site-c") == first
    sites.invitations.enroll(token, csr)
    sites.approve("site-c", sample_key=second)
    assert sites.sample_key_of("site-c") == second
    assert deployment.last("site")["insecure_sample_key"] == second.hex()
    sites.drain("site-c")
    sites.approve("site-c")
    assert sites.sample_key_of("site-c") == second, "an approval without a key keeps it"
    replayed = SiteRegistry(
        entries=[body for kind, body in deployment.entries if kind in ("enrollment", "site")],
        address="127.0.0.1:9443",
        ca_pin=deployment.ca.key_digest,
        clock=deployment.clock,
        record=deployment.record,
    )
    assert replayed.sample_key_of("site-c") == second
    sites.remove("site-c")
    assert sites.sample_key_of("site-c") == b""


def test_what_is_no_digest_names_no_development_key(deployment: Deployment) -> None:
    with pytest.raises(ConfigError, match="a development key is named by its SHA-256"):
        deployment.sites.invitations.create_token("site-c", sample_key=b"short")
    with pytest.raises(ConfigError, match="a development key is named by its SHA-256"):
        deployment.sites.approve("site-a", sample_key=b"short")


def test_a_token_that_was_used_is_refused_with_another_key(
    deployment: Deployment, csr: bytes, other_csr: bytes
) -> None:
    token = deployment.sites.invitations.create_token("site-c", needs_approval=False).encode()
    deployment.sites.invitations.enroll(token, csr)
    with pytest.raises(EnrollmentRefused, match="used before, by another key"):
        deployment.sites.invitations.enroll(token, other_csr, peer="ip:evil")
    assert deployment.last("enrollment")["outcome"] == "refused"
    assert deployment.last("enrollment")["peer"] == "ip:evil"


def test_an_expired_token_is_refused(deployment: Deployment, csr: bytes) -> None:
    token = deployment.sites.invitations.create_token(
        "site-c", lifetime=timedelta(minutes=5)
    ).encode()
    deployment.clock.advance(minutes=5)
    with pytest.raises(EnrollmentRefused, match="expired") as caught:
        deployment.sites.invitations.enroll(token, csr)
    assert "fedlearn site token site-c" in caught.value.hint


def test_a_spent_token_lets_its_own_key_back_in_however_late(
    deployment: Deployment, csr: bytes
) -> None:
    token = deployment.sites.invitations.create_token("site-c", needs_approval=False).encode()
    deployment.sites.invitations.enroll(token, csr)
    deployment.clock.advance(days=90)
    assert deployment.sites.invitations.enroll(token, csr).status is SiteStatus.ACTIVE


def test_a_forged_token_is_distinguished_from_a_typing_mistake(
    deployment: Deployment, csr: bytes
) -> None:
    genuine = deployment.sites.invitations.create_token("site-c")
    forged = JoinToken.fresh(
        address=genuine.address, site=genuine.site, ca_pin=genuine.ca_pin
    ).encode()
    with pytest.raises(EnrollmentRefused, match="not one of this coordinator"):
        deployment.sites.invitations.enroll(forged, csr)
    text = genuine.encode()
    position = len(text) // 2
    mistyped = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
    with pytest.raises(ConfigError, match="incomplete or mistyped"):
        deployment.sites.invitations.enroll(mistyped, csr)


def test_a_token_for_one_site_does_not_enroll_another(deployment: Deployment, csr: bytes) -> None:
    genuine = deployment.sites.invitations.create_token("site-c")
    renamed = JoinToken(
        address=genuine.address, site="site-d", ca_pin=genuine.ca_pin, secret=genuine.secret
    )
    with pytest.raises(EnrollmentRefused, match="not one of this coordinator"):
        deployment.sites.invitations.enroll(renamed.encode(), csr)


def test_a_new_invitation_voids_the_former(deployment: Deployment, csr: bytes) -> None:
    former = deployment.sites.invitations.create_token("site-c").encode()
    latter = deployment.sites.invitations.create_token("site-c").encode()
    with pytest.raises(EnrollmentRefused, match="void"):
        deployment.sites.invitations.enroll(former, csr)
    deployment.sites.invitations.enroll(latter, csr)


def test_an_enrolled_site_gets_no_second_token(deployment: Deployment) -> None:
    with pytest.raises(ConfigError, match="active already"):
        deployment.sites.invitations.create_token("site-a")


def test_one_key_is_one_site(deployment: Deployment) -> None:
    csr = csr_of(deployment.site_keys["site-a"])
    token = deployment.sites.invitations.create_token("site-c").encode()
    with pytest.raises(EnrollmentRefused, match="belongs to site site-a"):
        deployment.sites.invitations.enroll(token, csr)


def test_a_removed_site_is_cut_off_informed_and_may_be_invited_anew(
    deployment: Deployment, csr: bytes
) -> None:
    sites = deployment.sites
    received: list[Any] = []
    sites.subscribe(received.append)
    issued = deployment.ca.issue_site(
        csr_of(deployment.site_keys["site-a"]), site="site-a", now=deployment.clock()
    )
    peer = PeerCertificate.parse(issued.der)
    assert sites.authenticate(peer).name == "site-a"
    sites.remove("site-a")
    assert [(site.name, site.status) for site in received] == [("site-a", SiteStatus.REMOVED)]
    with pytest.raises(TransportError, match="removed"):
        sites.authenticate(peer)
    with pytest.raises(ConfigError, match="is removed"):
        sites.remove("site-a")
    sites.invitations.enroll(
        sites.invitations.create_token("site-a", needs_approval=False).encode(), csr
    )
    with pytest.raises(TransportError, match="another key"):
        sites.authenticate(peer)


def test_a_rejected_site_stays_out(deployment: Deployment, csr: bytes) -> None:
    token = deployment.sites.invitations.create_token("site-c").encode()
    deployment.sites.invitations.enroll(token, csr)
    assert deployment.sites.reject("site-c").status is SiteStatus.REMOVED
    with pytest.raises(EnrollmentRefused, match="void"):
        deployment.sites.invitations.enroll(token, csr)


def test_what_does_not_fit_the_status_is_refused(deployment: Deployment) -> None:
    with pytest.raises(ConfigError, match="is active, not pending or draining"):
        deployment.sites.approve("site-a")
    with pytest.raises(ConfigError, match="no site"):
        deployment.sites.approve("nobody")
    deployment.sites.drain("site-a")
    assert deployment.sites.approve("site-a").status is SiteStatus.ACTIVE


def reopened(deployment: Deployment, *, limit: int = 1000) -> SiteRegistry:
    """The registry as it is after a restart: all that is known of sites is in the ledger."""
    return SiteRegistry(
        entries=deployment.site_entries(),
        address="127.0.0.1:9443",
        ca_pin=deployment.ca.key_digest,
        clock=deployment.clock,
        record=deployment.record,
        limit=limit,
    )


def test_the_register_survives_a_restart_and_keeps_no_secret(
    deployment: Deployment, csr: bytes
) -> None:
    token = deployment.sites.invitations.create_token("site-c", needs_approval=False)
    stored = repr(deployment.entries)
    assert token.secret.hex() not in stored
    assert token.encode() not in stored
    again = reopened(deployment)
    assert [site.name for site in again.list()] == ["site-a", "site-b", "site-c"]
    assert again.invitations.enroll(token.encode(), csr).status is SiteStatus.ACTIVE


@pytest.mark.parametrize("change", ["remove", "drain", "reject", "approve"])
def test_every_change_of_a_site_outlives_a_restart(
    deployment: Deployment, csr: bytes, change: str
) -> None:
    deployment.sites.invitations.enroll(
        deployment.sites.invitations.create_token("site-c").encode(), csr
    )
    getattr(deployment.sites, change)("site-c" if change in ("reject", "approve") else "site-a")
    deployment.sites.invitations.create_token("site-d", ek=bytes(32))
    again = reopened(deployment)
    assert again.list() == deployment.sites.list()
    assert again.site_of_ak(bytes(32)) is None
    with pytest.raises(EnrollmentRefused, match="belongs to site site-d"):
        again.invitations.create_token("site-e", ek=bytes(32))


def test_a_refusal_changes_nothing_after_a_restart(
    deployment: Deployment, csr: bytes, other_csr: bytes
) -> None:
    token = deployment.sites.invitations.create_token("site-c", needs_approval=False).encode()
    deployment.sites.invitations.enroll(token, csr)
    with pytest.raises(EnrollmentRefused):
        deployment.sites.invitations.enroll(token, other_csr)
    assert reopened(deployment).list() == deployment.sites.list()


@pytest.mark.parametrize("damage", [{"key": "zz"}, {"status": "king"}, {"tpm": {}}, {"changed": 0}])
def test_an_entry_of_another_version_is_named(
    deployment: Deployment, damage: dict[str, Any]
) -> None:
    body = deployment.site_entries()[-1]
    body["state"] |= damage
    with pytest.raises(LedgerError, match="an entry about a site"):
        reopened(deployment)


def test_a_change_that_cannot_be_recorded_does_not_take_place(
    deployment: Deployment, csr: bytes
) -> None:
    token = deployment.sites.invitations.create_token("site-c").encode()

    def full(kind: str, body: Mapping[str, Any]) -> None:
        raise StoreError("the disk is full")

    deployment.before_entry = full
    with pytest.raises(StoreError):
        deployment.sites.invitations.enroll(token, csr)
    assert deployment.sites.show("site-c").status is SiteStatus.INVITED


@pytest.mark.parametrize("report", ["", "[]", "{", "[" * 100_000, '{"a":"' + "x" * 300_000 + '"}'])
def test_broken_capabilities_are_refused(deployment: Deployment, report: str) -> None:
    with pytest.raises(ConfigError, match="capabilities"):
        deployment.sites.report_capabilities("site-a", report)
    deployment.sites.report_capabilities("site-a", '{"tee": ["tpm"]}')
    assert deployment.sites.show("site-a").capabilities == '{"tee": ["tpm"]}'


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(days=31), timedelta(days=-1)])
def test_an_impossible_lifetime_is_refused(deployment: Deployment, lifetime: timedelta) -> None:
    with pytest.raises(ConfigError, match="lifetime"):
        deployment.sites.invitations.create_token("site-c", lifetime=lifetime)


def test_a_token_reads_back_and_hides_its_secret() -> None:
    token = JoinToken.fresh(address="[::1]:9443", site="site-c", ca_pin=bytes(32))
    assert JoinToken.parse(f"  {token.encode()}\n") == token
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)


def test_a_token_of_another_version_states_it() -> None:
    import hashlib

    body = bytes([9]) + bytes(70)
    text = base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:4]).decode()
    with pytest.raises(ConfigError, match="another version"):
        JoinToken.parse("fedlearn-join-" + text.rstrip("="))


@pytest.mark.parametrize(
    "text", ["", "fedlearn-join-", "fedlearn-join-!!!!", "Bearer x", "fedlearn-join-" + "A" * 2000]
)
def test_what_is_no_token_states_it(text: str) -> None:
    with pytest.raises(ConfigError, match="incomplete or mistyped"):
        JoinToken.parse(text)


@pytest.mark.parametrize("text", ["host", "host:0", "host:65536", "a b:1", "http://h:1", ":1", ""])
def test_what_is_no_address_states_it(text: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        checked_address(text)


def test_no_more_sites_are_invited_than_the_operator_allows(deployment: Deployment) -> None:
    invitations = reopened(deployment, limit=3).invitations
    invitations.create_token("site-c")
    invitations.create_token("site-c")
    with pytest.raises(ConfigError, match="there are 3 sites already") as caught:
        invitations.create_token("site-d")
    assert "limits.sites" in caught.value.hint
