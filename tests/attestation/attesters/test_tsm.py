"""Evidence of TDX domains and SNP guests through the kernel's configfs."""

from __future__ import annotations

import errno
import struct
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.attesters.tsm import ConfigFs, TsmAttester
from attestation.errors import AttesterError, BindingError
from attestation.evidence import Tee
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes import tsm_kernel
from tests.vectors import keys
from tests.vectors.amd import Amd
from tests.vectors.cases import binding
from tests.vectors.domain import INTEL, boot_log, judged, quote, rtmrs
from tests.vectors.intel import APP, JOB


def test_tsm_makes_evidence_of_a_domain(tmp_path: Path, ccel: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=tmp_path / "none")
    assert attester.tee is Tee.TDX
    attester.extend("app", APP)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    claims = judged(attester.collect(binding()))
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    assert not claims.unverified
    assert "firmware" in claims.measurements
    assert not kernel.entries
    with pytest.raises(AttesterError, match="already measured"):
        attester.extend("app", JOB)


def test_what_a_software_register_states_must_be_covered(tmp_path: Path, ccel: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=tmp_path / "none")
    attester.extend("app", APP)
    honest = attester.collect(binding())
    attester.extend("job", JOB)
    longer = attester.collect(binding())
    with pytest.raises(BindingError, match="software registers"):
        judged(replace(honest, event_log=longer.event_log))
    with pytest.raises(BindingError):
        judged(replace(longer, event_log=honest.event_log))


def test_tsm_measures_into_rtmr3_where_the_kernel_offers_it(
    tmp_path: Path, ccel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    register = tmp_path / "rtmr3"
    register.write_bytes(bytes(48))

    def extend(path: Path, digest: bytes) -> None:
        path.write_bytes(hashlib.sha384(path.read_bytes() + digest).digest())

    monkeypatch.setattr(TsmAttester, "_write", staticmethod(extend))

    def quoted(report_data: bytes) -> bytes:
        registers = (*rtmrs(boot_log())[:3], register.read_bytes())
        return INTEL.quote(4, report_data=report_data, rtmrs=registers)

    kernel = tsm_kernel.TsmKernel(quoted)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=register)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    attester.extend("job", JOB)
    claims = judged(attester.collect(binding()))
    assert claims.measurements["rtmr3"] == register.read_bytes()
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    with pytest.raises(AttesterError, match="already measured"):
        attester.extend("app", JOB)
    extend(register, bytes(48))
    with pytest.raises(AttesterError, match="extended by something"):
        attester.collect(binding())


def test_tsm_makes_evidence_of_a_guest_with_its_certificates(tmp_path: Path) -> None:
    amd = Amd(product="Genoa")
    leaf = amd.leaf()
    vcek = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
    other = struct.pack("<16sII", b"v" * 16, 72, 4)  # of a kind that is no certificate
    table = other + struct.pack("<16sII", vcek, 72, len(leaf)) + bytes(24) + leaf
    kernel = tsm_kernel.TsmKernel(
        lambda data: amd.report(3, report_data=data), provider="sev_guest", auxblob=table
    )
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=tmp_path / "none")
    assert attester.tee is Tee.SNP
    attester.extend("app", APP)
    evidence = attester.collect(binding())
    assert evidence.endorsements == (leaf,)
    trust = TrustAnchors(amd_ark_keys=frozenset({amd.root_key}), endorsements=(amd.authorities(),))
    claims = verify(evidence, binding=binding(), trust=trust, now=keys.AT)
    assert claims.measurements["app"] == APP
    assert not claims.unverified


def test_a_report_for_somebody_else_is_asked_for_again(tmp_path: Path, ccel: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=tmp_path / "none")
    kernel.disturb, before = 2, kernel.made
    assert judged(attester.collect(binding())).bound is True
    assert kernel.made == before + 3
    kernel.disturb = 100
    with pytest.raises(AttesterError, match="kept changing"):
        attester.collect(binding())
    assert not kernel.entries


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote, provider="arm_cca_guest")
    with pytest.raises(AttesterError, match="arm_cca_guest"):
        TsmAttester(tmp_path / "s", files=kernel)


def test_configfs_that_is_not_there_states_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="configfs-tsm") as refused:
        TsmAttester(tmp_path / "s", files=ConfigFs(tmp_path / "missing"))
    assert "6.7" in refused.value.hint


def test_configfs_reads_writes_and_removes(tmp_path: Path) -> None:
    files = ConfigFs(tmp_path)
    name = files.make()
    with pytest.raises(OSError) as missing:
        files.write(name, "inblob", b"x")
    assert missing.value.errno == errno.ENOENT
    (tmp_path / name / "inblob").touch()
    files.write(name, "inblob", b"data")
    assert files.read(name, "inblob") == b"data"
    (tmp_path / name / "inblob").unlink()
    files.remove(name)
    assert not list(tmp_path.iterdir())
