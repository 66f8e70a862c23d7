"""Real evidence gives the outcome in its manifest, through the public interface.

The files lie where ``FEDLEARN_VECTORS`` points. Each file of the manifest has a test here, and
a file without one fails :func:`test_every_file_of_the_manifest_is_tested`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.binding import ReportData
from attestation.documents.formats import to_evidence
from attestation.endorsements.amd import Endorsements, check_report
from attestation.endorsements.chains import check_issued, split_certificates
from attestation.endorsements.offline import Input, gather
from attestation.errors import (
    BindingError,
    EndorsementError,
    EventLogError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.logs.firmwarelog import boot_claims
from attestation.logs.runtime_events import RuntimeEvent
from attestation.policy.appraise import appraise as appraise_claims
from attestation.policy.model import AppraisalPolicy, ReferenceValue
from attestation.policy.parse import parse_policy
from attestation.policy.references import event_references
from attestation.policy.result import AttestationResult, Tier
from attestation.quotes.snp import SnpReport
from attestation.quotes.tpm_keys import load_public_key
from attestation.trust import AMD_ARK_KEYS, TrustAnchors, key_digest
from attestation.verifiers import verify

TODAY = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
COVERED: dict[str, set[str]] = {}


def covers(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return which files of the manifest a test is about."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        COVERED[test.__name__] = set(names)
        return test

    return decorate


class Files:
    """The folder, and what is made of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def trust(self, *endorsements: str, collateral: tuple[str, ...] = ()) -> TrustAnchors:
        return TrustAnchors(
            endorsements=tuple(map(self.read, endorsements)),
            collateral=tuple(map(self.read, collateral)),
        )

    def evidence(self, name: str, *, log: str = "", form: str | None = None) -> Evidence:
        return to_evidence(self.read(name), form, event_log=self.read(log) if log else b"")


@pytest.fixture
def files(vectors: Path) -> Files:
    return Files(vectors)


def appraise(claims: Claims, text: str, now: dt.datetime = TODAY) -> AttestationResult:
    policy = parse_policy(f'version = 1\nname = "t"\n{text}'.encode())
    return appraise_claims(policy, claims, now=now, require_binding=False)


def refusals(result: AttestationResult) -> set[str]:
    return {finding.claim for finding in result.refusals}


def pin(claim: str, claims: Claims) -> str:
    value = claims.measurements[claim].hex()
    return f'[[reference]]\nclaim = "{claim}"\nvalue = "{value}"\n'


@covers("tdx_v4_quote_phala.bin", "tdx_v4_quote_phala.collateral.json")
def test_tdx_v4_is_valid_and_up_to_date(files: Files) -> None:
    evidence = files.evidence("tdx_v4_quote_phala.bin")
    trust = files.trust(collateral=("tdx_v4_quote_phala.collateral.json",))
    for second in (1750329147, 1752919234):
        now = dt.datetime.fromtimestamp(second, dt.UTC)
        claims = verify(evidence, binding=None, trust=trust, now=now)
        assert (claims.tcb, claims.debug) == ("UpToDate", False)
        assert claims.attributes["advisories"] == ()
        assert claims.attributes["fmspc"] == "B0C06F000000"
        assert claims.attributes["tcb_evaluation"] == 17
        assert claims.measurements["rtmr3"] == bytes(48)
        assert claims.hardware_id.hex() == "811dca2a26b952e85bb6448b097ba4fd"
    accepted = 'accept = ["tdx"]\n' + "".join(
        pin(claim, claims) for claim in ("mrtd", "rtmr1", "rtmr2")
    )
    assert appraise(claims, accepted).status is Tier.AFFIRMING
    demanding = accepted + "[tdx]\nmin_tcb_evaluation = 18\n"
    assert refusals(appraise(claims, demanding)) == {"tcb_evaluation"}
    for second in (1750329146 - 86400, 1752919236):
        now = dt.datetime.fromtimestamp(second, dt.UTC)
        with pytest.raises(FreshnessError):
            verify(evidence, binding=None, trust=trust, now=now)


@covers("tdx_v5_quote_phala_outdated.bin", "tdx_v5_fmspc90C06F.collateral.json")
def test_tdx_v5_matches_no_tcb_level(files: Files) -> None:
    evidence = files.evidence("tdx_v5_quote_phala_outdated.bin")
    trust = files.trust(collateral=("tdx_v5_fmspc90C06F.collateral.json",))
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    with pytest.raises(EndorsementError, match="No matching TCB level"):
        verify(evidence, binding=None, trust=trust, now=now)
    alone = verify(evidence, binding=None, trust=TrustAnchors(), now=now)
    assert alone.tcb == "unknown"
    wrong = files.trust(collateral=("tdx_v4_quote_phala.collateral.json",))
    with pytest.raises(EndorsementError, match="FMSPC 90C06F000000") as refused:
        verify(evidence, binding=None, trust=wrong, now=now)
    assert "fedlearn collateral fetch" in refused.value.hint


@covers("sgx_v3_quote_phala.bin", "sgx_v3_quote_phala.collateral.json")
def test_sgx_v3_is_valid_and_needs_configuration(files: Files) -> None:
    evidence = files.evidence("sgx_v3_quote_phala.bin")
    trust = files.trust(collateral=("sgx_v3_quote_phala.collateral.json",))
    hello = ReportData(value=b"Hello, world!".ljust(64, b"\0"))
    for second in (1750330571, 1752919278):
        now = dt.datetime.fromtimestamp(second, dt.UTC)
        claims = verify(evidence, binding=hello, trust=trust, now=now)
    assert claims.tcb == "ConfigurationAndSWHardeningNeeded"
    assert claims.attributes["advisories"] == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims.attributes["fmspc"] == "00A067110000"
    strict = 'accept = ["sgx"]\n' + pin("mrenclave", claims)
    assert refusals(appraise(claims, strict)) == {"tcb_status", "advisories"}
    lenient = (
        strict + '[sgx]\ntcb_status = ["ConfigurationAndSWHardeningNeeded"]\n'
        'advisories_allowed = ["INTEL-SA-00289", "INTEL-SA-00615"]\n'
    )
    assert appraise(claims, lenient).status is Tier.AFFIRMING


@covers("gcp_cos113_tdx_quote.bin", "gcp_ccel_data.dat", "gcp_cos113_nonce.dat")
def test_gcp_log_replays_to_the_quote(files: Files) -> None:
    evidence = files.evidence("gcp_cos113_tdx_quote.bin", log="gcp_ccel_data.dat")
    assert len(files.read("gcp_cos113_nonce.dat")) == 64
    claims = verify(evidence, binding=None, trust=TrustAnchors(), now=TODAY)
    assert (claims.tcb, claims.unverified) == ("unknown", ("tcb",))
    assert claims.attributes["fmspc"] == "00806F050000"
    assert str(claims.attributes["report_data"]).startswith("00000000")
    log = EventLog.parse(evidence.event_log)
    counts = [len(log.extending(index)) for index in range(1, 5)]
    assert (len(log.events), counts) == (43, [16, 7, 20, 0])
    registers = log.replay("sha384", ccel=True)
    for index in range(3):
        assert registers[index + 1] == claims.measurements[f"rtmr{index}"]
    assert {"firmware", "kernel", "cmdline", "boot.1", "boot.2"} <= claims.measurements.keys()
    # Without collateral nobody judged the TCB, and no policy accepts that.
    policy = 'accept = ["tdx"]\n' + pin("rtmr1", claims)
    assert "tcb_status" in refusals(appraise(claims, policy))
    named = event_references(evidence.event_log)
    mrtd = ReferenceValue(claim="mrtd", value=claims.measurements["mrtd"])
    for references, tier in (
        ((mrtd, *named), Tier.AFFIRMING),
        ((mrtd, *named[:-1]), Tier.CONTRAINDICATED),
    ):
        by_events = AppraisalPolicy(accept=(Tee.TDX,), references=references)
        findings = appraise_claims(by_events, claims, now=TODAY, require_binding=False).findings
        assert {f.claim: f.tier for f in findings}["launch_identity"] is tier
    other = files.evidence("gcp_cos113_tdx_quote.bin", log="trustee_CCEL_data_ovmf")
    with pytest.raises(EventLogError) as refused:
        verify(other, binding=None, trust=TrustAnchors(), now=TODAY)
    assert refused.value.register == "rtmr0"


@covers("trustee_tdx_quote_4.dat")
def test_a_debug_domain_is_genuine_and_refused(files: Files) -> None:
    evidence = files.evidence("trustee_tdx_quote_4.dat")
    claims = verify(evidence, binding=None, trust=TrustAnchors(), now=TODAY)
    assert claims.debug
    assert claims.attributes["td.debug"] is True
    assert claims.attributes["fmspc"] == "50806F000000"
    result = appraise(claims, 'accept = ["tdx"]\n' + pin("mrtd", claims))
    assert {"debug", "tcb_status"} <= refusals(result)


@covers("trustee_CCEL_data_ovmf", "trustee_CCEL_AAEL_alibabacloud")
def test_logs_parse(files: Files) -> None:
    ovmf = EventLog.parse(files.read("trustee_CCEL_data_ovmf"))
    claims = boot_claims(ovmf, "sha384", ccel=True)
    assert {"firmware", "kernel", "cmdline", "initrd"} <= claims.keys()
    agent = EventLog.parse(files.read("trustee_CCEL_AAEL_alibabacloud"))
    events = [RuntimeEvent.parse(event) for event in agent.extending(4)]
    assert [event.domain for event in events if event] == ["coco.com", "coco.com"]
    assert {"firmware", "kernel", "cmdline", "initrd"} <= boot_claims(
        agent, "sha384", ccel=True
    ).keys()


@covers("snp_v2_report_virtee_milan.hex", "snp_vcek_virtee_milan.der", "amd_ask_ark_milan.pem")
def test_snp_v2_is_valid(files: Files) -> None:
    evidence = files.evidence("snp_v2_report_virtee_milan.hex")
    trust = files.trust("snp_vcek_virtee_milan.der", "amd_ask_ark_milan.pem")
    claims = verify(evidence, binding=None, trust=trust, now=TODAY)
    assert claims.tcb == "0300000000000873"
    assert claims.attributes["snp.version"] == 2
    assert claims.attributes["snp.product"] == "Milan"
    assert SnpReport.parse(evidence.quote).policy == 0x30000
    accepted = 'accept = ["snp"]\n' + pin("launch", claims)
    assert appraise(claims, accepted).status is Tier.AFFIRMING
    low = accepted + "[snp.min_tcb]\nsnp = 9\n"
    assert refusals(appraise(claims, low)) == {"snp.reported_tcb.snp"}
    for now in (dt.datetime(2023, 4, 3, tzinfo=dt.UTC), dt.datetime(2030, 4, 4, tzinfo=dt.UTC)):
        with pytest.raises(FreshnessError):
            verify(evidence, binding=None, trust=trust, now=now)


@covers("snp_vlek_report_trustee.bin", "snp_vlek_trustee.der", "amd_asvk_ark_milan.pem")
def test_snp_vlek_is_valid_in_its_window_and_refused_by_default(files: Files) -> None:
    evidence = files.evidence("snp_vlek_report_trustee.bin")
    trust = files.trust("snp_vlek_trustee.der", "amd_asvk_ark_milan.pem")
    with pytest.raises(FreshnessError, match="expired on 2025-12-10"):
        verify(evidence, binding=None, trust=trust, now=TODAY)
    claims = verify(evidence, binding=None, trust=trust, now=dt.datetime(2025, 6, 1, tzinfo=dt.UTC))
    assert claims.attributes["snp.version"] == 3
    assert claims.attributes["snp.vmpl"] == 1
    assert claims.attributes["snp.signer"] == "VLEK"
    accepted = 'accept = ["snp"]\n' + pin("launch", claims)
    assert refusals(appraise(claims, accepted)) == {"snp.vmpl"}
    assert appraise(claims, accepted + "[snp]\nmax_vmpl = 1\n").status is Tier.AFFIRMING
    with pytest.raises(EndorsementError):
        verify(
            evidence,
            binding=None,
            trust=files.trust("snp_vlek_trustee.der", "amd_ask_ark_milan.pem"),
            now=dt.datetime(2025, 6, 1, tzinfo=dt.UTC),
        )


@covers("snp_vcek_virtee_turin.der", "amd_ask_ark_turin.pem")
def test_a_turin_certificate_chains_to_its_root(files: Files) -> None:
    trust = files.trust("snp_vcek_virtee_turin.der", "amd_ask_ark_turin.pem")
    chain = Endorsements.gather(trust.endorsements, ()).certificates
    for child, issuer in itertools.pairwise(chain):
        check_issued(child, issuer, step="chain")
    assert len(chain[0].extensions["1.3.6.1.4.1.3704.1.4"]) == 8
    assert "1.3.6.1.4.1.3704.1.3.9" in chain[0].extensions
    # A Milan report under it is refused: for its signature, before anything in it counts.
    report = SnpReport.parse(files.evidence("snp_v2_report_virtee_milan.hex").quote)
    with pytest.raises(SignatureError):
        check_report(report, Endorsements.gather(trust.endorsements, ()), trust, TODAY)


@covers("amd_ask_ark_genoa.pem", "amd_asvk_ark_genoa.pem", "amd_asvk_ark_turin.pem")
def test_every_amd_chain_ends_at_a_pinned_root(files: Files) -> None:
    for product in AMD_ARK_KEYS:
        for middle in ("ask", "asvk"):
            data = files.read(f"amd_{middle}_ark_{product.lower()}.pem")
            authority, root = split_certificates(data, "chain")
            check_issued(authority, root, step="chain")
            check_issued(root, root, step="chain")
            assert root.key_digest == AMD_ARK_KEYS[product]


@covers("az_snp_vtpm_evidence_v1.json", "az_snp_vcek.pem")
def test_azure_is_valid_from_end_to_end(files: Files) -> None:
    evidence = files.evidence("az_snp_vtpm_evidence_v1.json")
    assert evidence.tee is Tee.AZURE_VTPM
    challenge = ReportData(value=b"challenge")
    for endorsements in (("az_snp_vcek.pem",), ("amd_ask_ark_milan.pem",)):
        trust = files.trust(*endorsements)
        claims = verify(evidence, binding=challenge, trust=trust, now=TODAY)
        assert claims.bound is True
        assert claims.attributes["snp.product"] == "Milan"
        assert claims.measurements.keys() >= {f"pcr.{index}" for index in range(24)}
        started = ("launch", "pcr.4", "pcr.9")
        accepted = 'accept = ["azure-vtpm"]\n' + "".join(pin(claim, claims) for claim in started)
        assert appraise(claims, accepted).status is Tier.AFFIRMING
        with pytest.raises(BindingError):
            verify(evidence, binding=ReportData(value=b"challengE"), trust=trust, now=TODAY)
    with pytest.raises(EndorsementError):
        verify(evidence, binding=challenge, trust=TrustAnchors(), now=TODAY)


@covers(
    *(f"swtpm/{name}.bin" for name in ("attest", "sig", "pcrs", "nonce", "qualifying_data")),
    "swtpm/ak.pem",
    "swtpm/spki.der",
)
def test_swtpm_quote_is_valid(files: Files) -> None:
    qualifying = files.read("swtpm/qualifying_data.bin")
    names = ("sig.bin", "pcrs.bin", "ak.pem")
    evidence, trust = gather(
        Input(name="attest.bin", data=files.read("swtpm/attest.bin")),
        endorsements=tuple(Input(name=n, data=files.read(f"swtpm/{n}")) for n in names),
    )
    bound = ReportData(value=qualifying)
    claims = verify(evidence, binding=bound, trust=trust, now=TODAY)
    assert claims.bound is True
    ak = load_public_key(files.read("swtpm/ak.pem"), "ak")
    assert claims.attributes["tpm.ak"] == key_digest(ak).hex()
    assert load_public_key(files.read("swtpm/spki.der"), "spki")
    nonce = ReportData(value=files.read("swtpm/nonce.bin"))
    with pytest.raises(BindingError):
        verify(evidence, binding=nonce, trust=trust, now=TODAY)
    with pytest.raises(EndorsementError):
        verify(evidence, binding=bound, trust=replace(trust, tpm_aks=frozenset()), now=TODAY)


@covers("nv_hopper_report.txt", "nv_hopper_chain.txt")
def test_a_gpu_report_is_parsed(files: Files) -> None:
    evidence = Evidence(
        tee=Tee.NVIDIA,
        quote=bytes.fromhex(files.read("nv_hopper_report.txt").decode().strip()),
        endorsements=(files.read("nv_hopper_chain.txt"),),
    )
    claims = verify(evidence, binding=None, trust=TrustAnchors(), now=TODAY)
    assert claims.attributes["nvidia.driver"]
    assert "nvidia.revocation" not in claims.measurements
    alone = replace(evidence, endorsements=())
    assert verify(alone, binding=None, trust=TrustAnchors(), now=TODAY).unverified


def test_every_file_of_the_manifest_is_tested(vectors: Path) -> None:
    manifest = json.loads((vectors / "manifest.json").read_bytes())
    covered = set().union(*COVERED.values())
    assert manifest.keys() == covered
    for name, entry in manifest.items():
        assert hashlib.sha256((vectors / name).read_bytes()).hexdigest() == entry["sha256"], name
