"""Policies are taken from whom the coordinator was instructed to, and never an older one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from attestation.errors import (
    EndorsementError,
    EvidenceError,
    FreshnessError,
    PolicyError,
    SignatureError,
)
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.policy.sign import operator_key_digest, sign_policy
from server.coordinator import Coordinator
from server.jobs.policy_registry import PolicyRegistry
from tests.harness.restarting_coordinator import restarting_coordinator, tiny_bundle

KEY = ed25519.Ed25519PrivateKey.generate()
OTHER = ed25519.Ed25519PrivateKey.generate()
DIGEST = operator_key_digest(KEY.public_key())


def policy(version: int = 1, *, name: str = "p", software: str = "ab") -> AppraisalPolicy:
    return parse_policy(text(version, name=name, software=software).encode())


def text(version: int = 1, *, name: str = "p", software: str = "ab") -> str:
    return (
        f'version = {version}\nname = "{name}"\naccept = ["sample"]\ninsecure_sample = true\n'
        f'[[reference]]\nclaim = "software"\nvalue = "{software}"\n'
    )


class Registered:
    """A registry, and the ledger's entries that it looks at."""

    def __init__(self, *keys: bytes) -> None:
        self.entries: list[dict[str, Any]] = [{"change": "established"}]
        self.registry = PolicyRegistry(keys=frozenset(keys), entries=lambda: iter(self.entries))

    def accept(self, new: AppraisalPolicy, signature: bytes, job: str = "alpha") -> bytes:
        signer = self.registry.check(new, signature)
        noted = self.registry.entry(new, signer)
        self.entries.append({"job": job, "policy": new.digest.hex(), **noted})
        return signer


def test_a_policy_has_to_be_signed_by_a_known_key() -> None:
    registry = Registered(DIGEST)
    assert registry.accept(policy(), sign_policy(policy(), KEY)) == DIGEST
    assert registry.entries[-1]["signer"] == DIGEST.hex()
    with pytest.raises(EvidenceError, match="signed policies only"):
        registry.accept(policy(), b"")
    with pytest.raises(EndorsementError, match="not a known operator"):
        registry.accept(policy(), sign_policy(policy(), OTHER))
    with pytest.raises(SignatureError, match="another policy"):
        registry.accept(policy(), sign_policy(policy(2), KEY))


def test_an_older_version_of_a_name_is_a_rollback() -> None:
    registry = Registered(DIGEST)
    registry.accept(policy(3), sign_policy(policy(3), KEY))
    registry.accept(policy(3), sign_policy(policy(3), KEY), job="beta")
    with pytest.raises(FreshnessError, match="older than 3"):
        registry.accept(policy(2), sign_policy(policy(2), KEY))
    with pytest.raises(FreshnessError, match="another content"):
        registry.accept(policy(3, software="cd"), sign_policy(policy(3, software="cd"), KEY))
    registry.accept(policy(1, name="q"), sign_policy(policy(1, name="q"), KEY))
    registry.accept(policy(4), sign_policy(policy(4), KEY))


def test_without_keys_anybody_may_sign_or_nobody() -> None:
    registry = Registered()
    assert registry.accept(policy(2), b"") == b""
    assert registry.accept(policy(1), sign_policy(policy(1), OTHER)) == operator_key_digest(
        OTHER.public_key()
    )
    with pytest.raises(SignatureError):
        registry.accept(policy(1), sign_policy(policy(2), OTHER))
    with pytest.raises(EvidenceError):
        registry.accept(policy(1), b"junk")


def test_versions_that_strangers_signed_hold_nobody_back() -> None:
    registry = Registered()
    registry.accept(policy(9), sign_policy(policy(9), OTHER))
    registry.accept(policy(9), b"")
    strict = PolicyRegistry(keys=frozenset({DIGEST}), entries=lambda: iter(registry.entries))
    assert strict.check(policy(1), sign_policy(policy(1), KEY)) == DIGEST


def test_a_job_goes_on_by_a_policy_whose_signature_still_counts() -> None:
    registry = Registered(DIGEST).registry
    registry.check_again(policy(), sign_policy(policy(), KEY), job="alpha")
    with pytest.raises(EndorsementError, match="not a known operator's key"):
        registry.check_again(policy(), sign_policy(policy(), OTHER), job="alpha")
    with pytest.raises(EvidenceError, match="signed policies only"):
        registry.check_again(policy(), b"", job="alpha")


# --- a coordinator ------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    return tiny_bundle(tmp_path / "app")


@pytest.fixture
def coordinators(tmp_path: Path) -> Iterator[Callable[[], Coordinator]]:
    """Start the coordinator of one state folder, again and again."""
    with restarting_coordinator(tmp_path, policy_keys=[DIGEST]) as start:
        yield start


JOB = 'name = "alpha"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'


def policy_entries(coordinator: Coordinator) -> list[dict[str, Any]]:
    ledger = coordinator._directory.ledger
    found = [json.loads(json.dumps(dict(e.body))) for e in ledger.entries(kind="policy")]
    return [body for body in found if "job" in body]


class Handed:
    """Orders as a connected site gets them."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    def send(self, order: object) -> None:
        self.orders.append(order)

    def close(self, reason: str) -> None:
        pass


@pytest.mark.parametrize(
    "table", ["", '[coordinator]\naccept = ["snp"]\n'], ids=["clients", "coordinator"]
)
def test_a_coordinator_takes_no_policy_that_pins_no_launch(
    coordinators: Callable[[], Coordinator], bundle: bytes, table: str
) -> None:
    coordinator = coordinators()
    bad = (text(2) if table else text(2).replace("software", "app")) + table
    signature = sign_policy(parse_policy(bad.encode()), KEY)
    match = "coordinator: nothing pins" if table else "policy.toml: nothing pins"
    with pytest.raises(PolicyError, match=match):
        coordinator.submit_job(
            "alice", job_toml=JOB, bundle=bundle, policy_toml=bad, policy_signature=signature
        )
    assert coordinator.list_jobs() == []
    assert policy_entries(coordinator) == []
    good = sign_policy(policy(1), KEY)
    coordinator.submit_job(
        "alice", job_toml=JOB, bundle=bundle, policy_toml=text(1), policy_signature=good
    )
    with pytest.raises(PolicyError, match=match):
        coordinator.replace_policy("bob", "alpha", bad, signature)
    # One that was taken before this was asked ends its job, with the reason.
    digest = coordinator._job_store.add_policy("alpha", bad, signature)
    coordinator._directory.ledger.append(
        "policy", {"job": "alpha", "text": digest.hex(), "version": 2}
    )
    coordinator = coordinators()
    assert coordinator.admission.admittable("alpha") is None
    record = coordinator.get_job("alpha")
    assert record.status == "failed"
    assert "nothing pins" in record.detail


def test_a_coordinator_takes_signed_policies_and_remembers(
    coordinators: Callable[[], Coordinator], bundle: bytes
) -> None:
    coordinator = coordinators()
    site = Handed()
    coordinator.site_connected("site-a", site, version="1", running=())

    def submit(signature: bytes) -> Any:
        return coordinator.submit_job(
            "alice",
            job_toml=JOB,
            bundle=bundle,
            policy_toml=text(2),
            policy_signature=signature,
        )

    with pytest.raises(EvidenceError, match="signed policies only"):
        submit(b"")
    with pytest.raises(EndorsementError):
        submit(sign_policy(policy(2), OTHER))
    assert coordinator.list_jobs() == []
    signature = sign_policy(policy(2), KEY)
    submit(signature)
    assert policy_entries(coordinator) == [
        {
            "job": "alpha",
            "policy": policy(2).digest.hex(),
            "text": hashlib.sha256(text(2).encode()).hexdigest(),
            "operator": "alice",
            "name": "p",
            "version": 2,
            "signer": DIGEST.hex(),
        }
    ]
    assigned = json.loads(site.orders[0].assignment_json)
    assert bytes.fromhex(assigned["policy_signature"]) == signature

    with pytest.raises(FreshnessError, match="older than 2"):
        coordinator.replace_policy("bob", "alpha", text(1), sign_policy(policy(1), KEY))
    with pytest.raises(EvidenceError):
        coordinator.replace_policy("bob", "alpha", text(3))
    coordinator.replace_policy("bob", "alpha", text(3), sign_policy(policy(3), KEY))
    entry = policy_entries(coordinator)[-1]
    assert (entry["operator"], entry["version"], entry["signer"]) == ("bob", 3, DIGEST.hex())
    assert entry["former"] == policy(2).digest.hex()

    coordinator = coordinators()
    offered = coordinator.admission.admittable("alpha")
    assert offered is not None
    assert offered.policy == policy(3)

    # A policy that was kept, and that the ledger does not name, is not in force: whoever kept
    # it was killed before the entry.
    coordinator._job_store.add_policy("alpha", text(4), sign_policy(policy(4), KEY))
    coordinator = coordinators()
    offered = coordinator.admission.admittable("alpha")
    assert offered is not None
    assert offered.policy == policy(3)

    # One that is in force and that nobody signed ends the job, until one is that somebody did.
    digest = coordinator._job_store.add_policy("alpha", text(3), b"")
    coordinator = coordinators()
    assert coordinator.get_job("alpha").status == "failed"
    with pytest.raises(EvidenceError, match="signed policies only"):
        coordinator.resume_job("alice", "alpha")
    assert (
        coordinator._job_store.add_policy("alpha", text(3), sign_policy(policy(3), KEY)) == digest
    )
    assert coordinator.resume_job("alice", "alpha").status == "running"
