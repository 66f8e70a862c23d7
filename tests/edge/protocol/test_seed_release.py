"""The seed of a commitment reaches an admitted client of its site, and nobody else."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from edge.protocol.seed_release import (
    MAX_GRANT_BYTES,
    Client,
    grant_seed,
    kept_seed,
    open_grant,
    request_seed,
)
from fedlearn.errors import LaunchError
from server.identity.pki import CertificateAuthority
from tests.harness.deployment import Deployment, new_key

SEED = bytes(range(32))
WHO = Client(job="alpha", site="site-a", client="c1")


def csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


class Parties:
    """A client and its site, both known to the coordinator of ``deployment``."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.new_key = deployment, new_key
        self.ca = deployment.ca
        self.now = deployment.clock()
        self.client_key, self.site_key = self.new_key(), self.new_key()
        self.hpke = x25519.X25519PrivateKey.generate()
        self.client_chain = self.issue_client(WHO)
        self.site_chain = self.issue_site("site-a")

    def issue_client(self, who: Client, ca: CertificateAuthority | None = None) -> bytes:
        return (
            (ca or self.ca)
            .issue_client(
                csr(self.client_key),
                **dataclasses.asdict(who),
                evidence_digest=bytes(32),
                policy_digest=bytes(32),
                now=self.now,
            )
            .chain_pem
        )

    def issue_site(self, site: str, ca: CertificateAuthority | None = None) -> bytes:
        return (ca or self.ca).issue_site(csr(self.site_key), site=site, now=self.now).chain_pem

    def request(self, **changes: Any) -> bytes:
        values = {
            "chain": self.client_chain,
            "key": self.client_key,
            "hpke_key": self.hpke.public_key().public_bytes_raw(),
        }
        return request_seed(changes.pop("who", WHO), **{**values, **changes})

    def grant(self, request: bytes, **changes: Any) -> bytes:
        values = {
            "seed": SEED,
            "ca_pem": self.ca.certificate_pem,
            "chain": self.site_chain,
            "key": self.site_key,
            "now": self.now,
        }
        return grant_seed(request, changes.pop("who", WHO), **{**values, **changes})

    def open(self, reply: bytes, **changes: Any) -> bytes:
        values = {"ca_pem": self.ca.certificate_pem, "hpke": self.hpke, "now": self.now}
        return open_grant(reply, changes.pop("who", WHO), **{**values, **changes})


@pytest.fixture
def parties(deployment: Deployment) -> Parties:
    return Parties(deployment)


@pytest.fixture
def stranger(parties: Parties) -> CertificateAuthority:
    """Another coordinator's CA, under the same name."""
    from server.identity.pki import CertificateAuthority

    return CertificateAuthority.create("test.example", parties.now)


def test_an_admitted_client_gets_the_seed(parties: Parties) -> None:
    reply = parties.grant(parties.request())
    assert SEED not in reply
    assert parties.open(reply) == SEED


# --- who asks -----------------------------------------------------------------------------


def test_a_ticket_alone_gets_nothing(parties: Parties, stranger: CertificateAuthority) -> None:
    """Whoever can read a pod has no certificate, and can only make one up."""
    with pytest.raises(LaunchError, match="not one of this coordinator"):
        parties.grant(parties.request(chain=parties.issue_client(WHO, stranger)))
    with pytest.raises(LaunchError, match="not one of this coordinator"):
        parties.grant(parties.request(chain=b""))


def test_a_certificate_without_its_key_gets_nothing(parties: Parties) -> None:
    with pytest.raises(LaunchError, match="not signed by the key of its certificate"):
        parties.grant(parties.request(key=parties.new_key()))


@pytest.mark.parametrize(
    "other",
    [
        Client(job="beta", site="site-a", client="c1"),
        Client(job="alpha", site="site-b", client="c1"),
        Client(job="alpha", site="site-a", client="c2"),
    ],
)
def test_another_admitted_client_gets_nothing(parties: Parties, other: Client) -> None:
    request = parties.request(who=other, chain=parties.issue_client(other))
    with pytest.raises(LaunchError, match="is not the client"):
        parties.grant(request)


def test_a_site_is_no_client(parties: Parties) -> None:
    request = parties.request(chain=parties.site_chain, key=parties.site_key)
    with pytest.raises(LaunchError, match="is not the client"):
        parties.grant(request)


def test_an_admission_that_is_over_gets_nothing(parties: Parties) -> None:
    with pytest.raises(LaunchError, match="is valid from") as caught:
        parties.grant(parties.request(), now=parties.now + timedelta(hours=1))
    assert "clocks" in caught.value.hint


def test_another_key_to_seal_to_cannot_be_put_in(parties: Parties) -> None:
    """Somebody between them would rather have it sealed to himself."""
    mine = x25519.X25519PrivateKey.generate().public_key().public_bytes_raw()
    theirs = parties.hpke.public_key().public_bytes_raw()
    altered = parties.request().replace(theirs, mine)
    with pytest.raises(LaunchError, match="not signed"):
        parties.grant(altered)


# --- who answers --------------------------------------------------------------------------


def test_a_seed_that_somebody_made_up_is_not_taken(
    parties: Parties, stranger: CertificateAuthority
) -> None:
    """He could look up records in the root that he sees."""
    request = parties.request()
    made_up = parties.grant(request, seed=bytes(32), chain=parties.issue_site("site-a", stranger))
    with pytest.raises(LaunchError, match="not one of this coordinator"):
        parties.open(made_up)
    forged = parties.grant(request, seed=bytes(32), key=parties.new_key())
    with pytest.raises(LaunchError, match="not signed"):
        parties.open(forged)
    another = parties.grant(request, seed=bytes(32), chain=parties.issue_site("site-b"))
    with pytest.raises(LaunchError, match="is not the site site-a"):
        parties.open(another)


def test_a_reply_is_for_one_key_and_one_client(parties: Parties) -> None:
    reply = parties.grant(parties.request())
    with pytest.raises(LaunchError, match="not signed"):
        parties.open(reply, hpke=x25519.X25519PrivateKey.generate())
    with pytest.raises(LaunchError, match="not signed"):
        parties.open(reply, who=dataclasses.replace(WHO, job="beta"))


def test_a_seed_of_another_length_is_not_taken(parties: Parties) -> None:
    with pytest.raises(LaunchError, match="has 4 bytes"):
        parties.open(parties.grant(parties.request(), seed=b"seed"))


@pytest.mark.parametrize("data", [b"", b"\0" * 12, b"\xff" * 64, b"\0\0\0\1a" * 4, b"\0\0\0\2a"])
def test_what_makes_no_sense_is_refused(parties: Parties, data: bytes) -> None:
    with pytest.raises(LaunchError, match=r"malformed|not one of"):
        parties.grant(data)
    with pytest.raises(LaunchError, match=r"malformed|not one of"):
        parties.open(data)


def test_long_messages_are_refused_before_they_are_read(parties: Parties) -> None:
    for call in (parties.grant, parties.open):
        with pytest.raises(LaunchError, match="at most"):
            call(bytes(MAX_GRANT_BYTES + 1))


# --- the seed itself ----------------------------------------------------------------------


def test_a_job_has_one_seed_whoever_is_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        seeds = set(pool.map(lambda _: kept_seed(tmp_path, "alpha"), range(64)))
    assert len(seeds) == 1
    assert len(seeds.pop()) == 32
    assert kept_seed(tmp_path, "alpha") != kept_seed(tmp_path, "beta")
    (file, *_) = sorted((tmp_path / "commitments").iterdir())
    assert file.name == "alpha.seed"
    assert file.stat().st_mode & 0o777 == 0o600
