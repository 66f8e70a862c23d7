"""What a client is started with: all of it arrives, and what is malformed is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import PolicyError
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from edge.protocol.bootstrap import Bootstrap
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.spec import JobSpec, workload_digest

TRUST = TrustAnchors(
    sample_keys=frozenset({b"s" * 32}),
    tpm_aks=frozenset({b"a" * 32, b"b" * 32}),
    tpm_ek_of={b"a" * 32: b"e" * 32},
    tpm_boot_values=frozenset({b"p" * 32}),
    tpm_ek_roots=(b"a root", b"another"),
    amd_ark_keys=frozenset({b"d" * 32}),
    intel_root=b"i" * 32,
    nvidia_root=b"n" * 32,
    nvidia_rim_root=b"r" * 32,
    container_servers=frozenset({b"c" * 48}),
    known_events=frozenset({b"k" * 48, b"l" * 32}),
    collateral=(b"{}", b"[]"),
    endorsements=(b"second", b"first"),
)


def bootstrap(trust: TrustAnchors = TRUST) -> Bootstrap:
    return Bootstrap(
        site="site-a",
        client="client-1",
        spec="{}",
        policy="",
        bundle=b"\0code",
        gate_address="127.0.0.1:1",
        ca_pin=b"p" * 32,
        data="/data",
        attester=AttesterSettings(kind="tpm", tcti="swtpm:port=1"),
        state=Path("/state"),
        trust=trust,
    )


@pytest.mark.parametrize("trust", [TRUST, TrustAnchors()])
def test_everything_arrives(trust: TrustAnchors) -> None:
    assert Bootstrap.decode(bootstrap(trust).encode()) == bootstrap(trust)


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(TrustAnchors)])
def test_every_anchor_is_carried_and_needed(name: str) -> None:
    value = getattr(TRUST, name)
    assert value != getattr(TrustAnchors(), name), f"{name} is not tried by TRUST"
    document: dict[str, Any] = json.loads(bootstrap().encode())
    for wrong in (None, 1, "!", ["!"], [1], {"!": "!"}):
        broken = {**document, "trust": {**document["trust"], name: wrong}}
        with pytest.raises(ConfigError, match="malformed"):
            Bootstrap.decode(json.dumps(broken).encode())
    del document["trust"][name]
    with pytest.raises(ConfigError, match="malformed"):
        Bootstrap.decode(json.dumps(document).encode())
    assert isinstance(value, bytes | Mapping | frozenset | tuple)


def test_the_document_is_readable_to_no_secret_holder() -> None:
    text = repr(bootstrap())
    # Nor is there one in it: the seed of the commitment is for the admitted
    # (edge.protocol.seed_release).
    assert "seed" not in bootstrap().encode().decode()
    assert "code" not in text


POLICY = 'accept = ["sample"]\ninsecure_sample = true\n'
JOB = 'name = "alpha"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'


def of_job(**changes: Any) -> Bootstrap:
    spec = JobSpec.from_toml(JOB, policy=parse_policy(POLICY.encode()))
    made = dataclasses.replace(bootstrap(), spec=spec.to_json(), policy=POLICY)
    return dataclasses.replace(made, **changes)


def test_job_policy_and_code_are_read_and_hashed() -> None:
    spec = JobSpec.from_toml(JOB, policy=parse_policy(POLICY.encode()))
    found, code = of_job().read(), hashlib.sha256(b"\0code").digest()
    assert (found.spec.digest(), found.policy.name) == (spec.digest(), "unnamed")
    assert (found.digest, found.bundle) == (spec.digest(), code)
    assert found.workload == workload_digest(spec.digest(), code)
    other = of_job(bundle=b"other").read()
    assert (other.bundle, other.workload) != (found.bundle, found.workload)


def test_a_job_with_another_policy_or_for_another_site_is_refused() -> None:
    with pytest.raises(JobError, match="not the one that the job names"):
        of_job(policy=POLICY + 'name = "p"\n').read()
    with pytest.raises(PolicyError, match="accept"):
        of_job(policy='accept = "all"\n').read()
    with pytest.raises(JobError, match="does not name the site site-b"):
        of_job(site="site-b").read()
    assert parse_policy(POLICY.encode()) == of_job().read().policy
