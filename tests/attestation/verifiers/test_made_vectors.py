"""The vectors in ``tests/vectors/data`` are what their script makes, and give what they state."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.binding import ReportData
from attestation.errors import BindingError, EndorsementError, EventLogError
from attestation.evidence import Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys, make
from tests.vectors.intel import APP, JOB

DATA = Path(make.__file__).parent / "data"
MANIFEST = json.loads((DATA / "manifest.json").read_bytes())


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


def trust(*names: str) -> TrustAnchors:
    return TrustAnchors(
        intel_root=bytes.fromhex(MANIFEST["intel_root"]),
        amd_ark_keys=frozenset({bytes.fromhex(MANIFEST["amd_ark"])}),
        tpm_aks=frozenset(map(bytes.fromhex, MANIFEST["tpm_aks"])),
        collateral=tuple(read(name) for name in names if name.endswith(".json")),
        endorsements=tuple(read(name) for name in names if not name.endswith(".json")),
    )


def test_the_script_makes_these_files_again() -> None:
    made = make.build()
    assert made.keys() == {path.name for path in DATA.iterdir()}
    for name, data in made.items():
        assert read(name) == data, f"{name} differs; run `python -m tests.vectors.make`"
        if name != "manifest.json":
            assert MANIFEST["files"][name] == hashlib.sha256(data).hexdigest()


CASES = [
    ("tdx_v4_quote.bin", Tee.TDX, "ccel.bin", ("tdx_collateral.json",)),
    ("tdx_v5_quote.bin", Tee.TDX, "ccel.bin", ("tdx_collateral.json",)),
    ("sgx_v3_quote.bin", Tee.SGX, "", ("sgx_collateral.json",)),
    ("snp_milan_v2_report.bin", Tee.SNP, "", ("snp_milan_vcek.der", "snp_milan_ask_ark.pem")),
    *(
        (
            f"snp_{product}_{kind}_report.bin",
            Tee.SNP,
            "",
            (f"snp_{product}_{kind}.der", f"snp_{product}_{middle}_ark.pem"),
        )
        for product in ("milan", "genoa", "turin")
        for kind, middle in (("vcek", "ask"), ("vlek", "asvk"))
    ),
    ("azure_snp.json", Tee.AZURE_VTPM, "", ("snp_milan_ask_ark.pem",)),
    ("azure_tdx.json", Tee.AZURE_VTPM, "", ("tdx_collateral.json",)),
    ("tpm_ecdsa_quote.bin", Tee.TPM, "tpm_log.bin", ()),
    ("tpm_rsassa_quote.bin", Tee.TPM, "tpm_log.bin", ()),
]


@pytest.mark.parametrize(("name", "tee", "log", "vouching"), CASES, ids=[case[0] for case in CASES])
def test_a_vector_is_genuine_and_bound(
    name: str, tee: Tee, log: str, vouching: tuple[str, ...]
) -> None:
    evidence = Evidence(tee=tee, quote=read(name), event_log=read(log) if log else b"")
    value = bytes.fromhex(MANIFEST["report_data"])
    bound = ReportData(value=value[:32] if tee in (Tee.AZURE_VTPM, Tee.TPM) else value)
    now = dt.datetime.fromisoformat(MANIFEST["at"])
    claims = verify(evidence, binding=bound, trust=trust(*vouching), now=now)
    assert claims.bound is True
    assert not claims.debug
    assert not claims.unverified
    if log:
        assert any(claims.measurements["pcr.14" if tee is Tee.TPM else "rtmr3"])
        assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    other = ReportData(value=b"\1" * 64)
    with pytest.raises(BindingError):
        verify(evidence, binding=other, trust=trust(*vouching), now=now)


def test_a_log_with_one_event_too_many_names_rtmr3() -> None:
    log = EventLog.parse(read("ccel.bin"))
    longer = log.append(4, 6, {"sha384": bytes(48)}, b"another event")
    evidence = Evidence(tee=Tee.TDX, quote=read("tdx_v4_quote.bin"), event_log=longer.to_bytes())
    with pytest.raises(EventLogError) as refused:
        verify(evidence, binding=None, trust=trust("tdx_collateral.json"), now=keys.AT)
    assert refused.value.register == "rtmr3"
    assert f"event {longer.events[-1].number}" in str(refused.value)
    # With reference values, the error points at the first event that none of them knows.
    known = frozenset(event.digests["sha384"] for event in log.events[:-1])
    anchors = replace(trust("tdx_collateral.json"), known_events=known)
    with pytest.raises(EventLogError, match=f"event {log.events[-1].number} is the first"):
        verify(evidence, binding=None, trust=anchors, now=keys.AT)


@pytest.mark.parametrize("kind", ["ecdsa", "rsassa"])
def test_a_tpm_log_with_one_event_less_names_the_register(kind: str) -> None:
    log = EventLog.parse(read("tpm_log.bin"))
    shorter = replace(log, events=log.events[:-1]).to_bytes()
    evidence = Evidence(tee=Tee.TPM, quote=read(f"tpm_{kind}_quote.bin"), event_log=shorter)
    with pytest.raises(EventLogError) as refused:
        verify(evidence, binding=None, trust=trust(), now=keys.AT)
    assert refused.value.register == "pcr.14"


@pytest.mark.parametrize("kind", ["ecdsa", "rsassa"])
def test_a_tpm_key_that_nobody_proved_is_refused(kind: str) -> None:
    evidence = Evidence(tee=Tee.TPM, quote=read(f"tpm_{kind}_quote.bin"))
    with pytest.raises(EndorsementError, match="neither proven"):
        verify(evidence, binding=None, trust=TrustAnchors(), now=keys.AT)
