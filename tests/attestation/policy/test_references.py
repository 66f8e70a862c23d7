"""Reference values that are known before anything runs."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest

from attestation.errors import AttestationError, EventLogError, EvidenceError, PolicyError
from attestation.evidence import Tee
from attestation.logs.eventlog import EV_EVENT_TAG, EventLog
from attestation.policy.references import (
    image_references,
    initdata_references,
    log_references,
    read_initdata,
    snp_launch_reference,
)

INITDATA = b"""\
algorithm = "sha384"
version = "0.1.0"
[data]
"aa.toml" = '''
[token_configs]
'''
"policy.rego" = "package agent_policy"
"""


def test_the_digest_of_initdata_is_that_of_its_bytes() -> None:
    initdata = read_initdata(INITDATA)
    assert initdata.digest == hashlib.sha384(INITDATA).digest()
    assert initdata.entries == ("aa.toml", "policy.rego")
    assert initdata.host_data == initdata.digest[:32]
    assert initdata.mrconfigid == initdata.digest
    assert read_initdata(INITDATA + b"\n").digest != initdata.digest


def test_a_short_digest_is_padded_with_zeros_as_the_hosts_do() -> None:
    initdata = read_initdata(INITDATA.replace(b"sha384", b"sha256"))
    assert initdata.host_data == initdata.digest
    assert initdata.mrconfigid == initdata.digest + bytes(16)
    snp, tdx = initdata_references(INITDATA, name="v1")
    assert (snp.claim, snp.tee, tdx.claim, tdx.tee) == ("host_data", "snp", "mrconfigid", "tdx")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (INITDATA.replace(b"sha384", b"md5"), "algorithm"),
        (INITDATA.replace(b"algorithm", b"algo"), "algorithm"),
        (INITDATA.replace(b'"0.1.0"', b"1"), "version"),
        (INITDATA.replace(b"[data]", b"[date]"), "data"),
        (INITDATA.replace(b'"package agent_policy"', b"3"), "data"),
        (b"algorithm =", "initdata:1"),
        (b"\xff", "initdata:1"),
        (b"#" * (1024 * 1024 + 1), "at most"),
    ],
)
def test_what_is_not_initdata_is_named(data: bytes, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        read_initdata(data)


def test_a_known_log_gives_the_rtmrs() -> None:
    log = EventLog.create(("sha384",), index=1)
    first, second = b"\x01" * 48, b"\x02" * 48
    for index, digest in ((1, first), (4, second), (4, first)):
        log = log.append(index, EV_EVENT_TAG, {"sha384": digest}, b"")
    rtmr0, rtmr3 = log_references(log.to_bytes(), tee=Tee.TDX)
    assert (rtmr0.claim, rtmr3.claim) == ("rtmr0", "rtmr3")
    assert rtmr0.value == hashlib.sha384(bytes(48) + first).digest()
    once = hashlib.sha384(bytes(48) + second).digest()
    assert rtmr3.value == hashlib.sha384(once + first).digest()
    with pytest.raises(EventLogError, match="this is a CCEL"):
        log_references(log.to_bytes(), tee=Tee.TPM)
    with pytest.raises(EvidenceError):
        log_references(log.to_bytes()[:-1], tee=Tee.TDX)
    with pytest.raises(EvidenceError, match="no registers"):
        log_references(log.to_bytes(), tee=Tee.SNP)


def test_an_image_is_named_by_its_digest() -> None:
    digest = hashlib.sha256(b"manifest").hexdigest()
    for text in (f"sha256:{digest}", f"registry.example/app:1.0@sha256:{digest}"):
        [reference] = image_references(text)
        assert reference.value.hex() == digest
    for text in (
        "app:latest",
        "",
        f"sha256:{digest[:-1]}",
        f"sha512:{digest}",
        "sha256:" + "G" * 64,
    ):
        with pytest.raises(PolicyError, match="not an image by digest"):
            image_references(text)


def test_faults_of_an_snp_measurement_are_named(tmp_path: Path) -> None:
    ovmf = tmp_path / "OVMF.fd"
    with pytest.raises(PolicyError, match="vcpus"):
        snp_launch_reference(ovmf=ovmf, vcpus=0)
    with pytest.raises(PolicyError, match="kernel"):
        snp_launch_reference(ovmf=ovmf, vcpus=1, append="console=ttyS0")
    installed = importlib.util.find_spec("sevsnpmeasure") is not None
    with pytest.raises(AttestationError) as error:
        snp_launch_reference(ovmf=ovmf, vcpus=1)
    assert ("OVMF.fd" if installed else "sev-snp-measure") in str(error.value)
