"""What a client is started with: all of it arrives, and what is malformed is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from attestation.trust import TrustAnchors
from edge.bootstrap import Bootstrap
from fedlearn.attesterfile import AttesterSettings
from fedlearn.errors import ConfigError

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
    # Nor is there one in it: the seed of the commitment is for the admitted (edge.seedgrant).
    assert "seed" not in bootstrap().encode().decode()
    assert "code" not in text
