"""The status of a platform: what Intel's rule gives, and that ``dcap_qvl`` gives the same."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.binding import ReportData
from attestation.endorsements.intel import parse_collateral, read_pck
from attestation.endorsements.intel_tcb import RELAUNCH, RELAUNCH_AND_CONFIGURE, tcb_status
from attestation.errors import EndorsementError, EvidenceError, VerificationError
from attestation.evidence import Evidence, Tee
from attestation.policy.appraise import appraise
from attestation.policy.model import ReferenceValue
from attestation.policy.parse import parse_policy
from attestation.policy.result import Tier
from attestation.quotes.dcap import DcapQuote
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import keys
from tests.vectors.intel import Intel

INTEL = Intel()
STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
PARTS = ("UpToDate", "OutOfDate", "Revoked")
ADVISORIES = ("INTEL-SA-00001", "INTEL-SA-00002", "INTEL-SA-00003")
BOUND = ReportData(value=bytes(64))


def signed(tcb: dict[str, Any], identity: dict[str, Any]) -> bytes:
    """Return a document of collateral with these two, signed by the test's TCB signer."""
    document = json.loads(INTEL.collateral())
    for name, value in (("tcb_info", tcb), ("qe_identity", identity)):
        text = json.dumps(value, separators=(",", ":"))
        document[name] = text
        signature = keys.sign_p256(INTEL._key("tcb"), text.encode())
        document[f"{name}_signature"] = signature.hex()
    return json.dumps(document).encode()


def judged_by_dcap_qvl(quote: DcapQuote, document: bytes) -> tuple[str, tuple[str, ...]]:
    collateral = parse_collateral(document)
    assert collateral is not None
    report = dcap_qvl.verify_with_root_ca(
        quote.raw, collateral.parsed, quote.chain[-1], int(keys.AT.timestamp())
    )
    return str(report.status), tuple(sorted(set(report.advisory_ids)))


def judged_here(quote: DcapQuote, document: bytes) -> tuple[str, tuple[str, ...]]:
    read = json.loads(document)
    tcb, identity = json.loads(read["tcb_info"]), json.loads(read["qe_identity"])
    return tcb_status(quote, read_pck(quote).svns, tcb, identity)


@st.composite
def levels(draw: st.DrawFn, statuses: tuple[str, ...], around: int) -> list[dict[str, Any]]:
    """Draw levels of one SVN, highest first, as Intel publishes them."""
    svns = sorted(draw(st.sets(st.integers(around - 1, around + 1), min_size=1)), reverse=True)
    return [
        {
            "tcb": {"isvsvn": svn},
            "tcbDate": "2025-11-01T00:00:00Z",
            "tcbStatus": draw(st.sampled_from(statuses)),
            "advisoryIDs": draw(st.lists(st.sampled_from(ADVISORIES), max_size=2, unique=True)),
        }
        for svn in svns
    ]


@st.composite
def platforms(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw levels of a platform, in any order, of which few, many or all are reached."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        least = draw(st.integers(1, 4))
        tdx = [draw(st.integers(0, 6)), 0, draw(st.integers(1, 3)), *(0,) * 13]
        found.append(
            {
                "tcb": {
                    "sgxtcbcomponents": [{"svn": least if n < 8 else 0} for n in range(16)],
                    "pcesvn": draw(st.integers(10, 12)),
                    "tdxtcbcomponents": [{"svn": svn} for svn in tdx],
                },
                "tcbDate": "2025-11-01T00:00:00Z",
                "tcbStatus": draw(st.sampled_from(STATUSES)),
                "advisoryIDs": draw(st.lists(st.sampled_from(ADVISORIES), max_size=2, unique=True)),
            }
        )
    return found


@settings(max_examples=250, deadline=None)
@given(
    platform=platforms(),
    module=levels(PARTS, 5),
    enclave=levels(PARTS, 6),
    now=st.tuples(st.integers(3, 6), st.sampled_from([0, 1]), st.integers(1, 3)),
    then=st.tuples(st.integers(3, 6), st.sampled_from([0, 1]), st.integers(1, 3)),
    version=st.sampled_from([4, 5]),
)
def test_dcap_qvl_gives_the_same(
    platform: list[dict[str, Any]],
    module: list[dict[str, Any]],
    enclave: list[dict[str, Any]],
    now: tuple[int, int, int],
    then: tuple[int, int, int],
    version: int,
) -> None:
    document = json.loads(INTEL.collateral())
    tcb, identity = json.loads(document["tcb_info"]), json.loads(document["qe_identity"])
    tcb["tcbLevels"], identity["tcbLevels"] = platform, enclave
    tcb["tdxModuleIdentities"][0]["tcbLevels"] = module
    made = signed(tcb, identity)
    quote = DcapQuote.parse(quoted(version, bytes(then) + bytes(13), bytes(now) + bytes(13)))
    try:
        expected = judged_by_dcap_qvl(quote, made)
    except ValueError:
        expected = ("Revoked", ())
    try:
        found = judged_here(quote, made)
    except EndorsementError:
        found = ("Revoked", ())
    assert found == expected or found[0] == expected[0] == "Revoked"


def quoted(version: int, launched: bytes, current: bytes) -> bytes:
    """Return a quote of a TD that was launched with one TDX module and runs on another."""
    return INTEL.quote(version, tee_tcb_svn=launched, tee_tcb_svn_2=current)


@pytest.mark.parametrize(
    ("launched", "configured", "status"),
    [
        ("OutOfDate", "UpToDate", RELAUNCH),
        ("OutOfDate", "ConfigurationNeeded", RELAUNCH_AND_CONFIGURE),
        ("OutOfDateConfigurationNeeded", "UpToDate", RELAUNCH_AND_CONFIGURE),
        ("SWHardeningNeeded", "UpToDate", "SWHardeningNeeded"),
    ],
)
def test_a_domain_that_should_be_launched_again(
    launched: str, configured: str, status: str
) -> None:
    document = json.loads(INTEL.collateral(status=configured))
    tcb, identity = json.loads(document["tcb_info"]), json.loads(document["qe_identity"])
    older = copy.deepcopy(tcb["tcbLevels"][0])
    older["tcbStatus"] = launched
    older["tcb"]["tdxtcbcomponents"][2]["svn"] = 1
    tcb["tcbLevels"].append(older)
    made = signed(tcb, identity)
    quote = DcapQuote.parse(quoted(5, bytes((5, 1, 1)) + bytes(13), bytes((5, 1, 2)) + bytes(13)))
    assert judged_here(quote, made) == judged_by_dcap_qvl(quote, made) == (status, ())
    policy = parse_policy(f'accept = ["tdx"]\n[tdx]\ntcb_status = ["{status}"]\n'.encode())
    assert policy.tdx.tcb_status == (status,)


def test_real_quotes_get_the_same_status(vectors: Path) -> None:
    for name in ("tdx_v4_quote_phala", "sgx_v3_quote_phala"):
        quote = DcapQuote.parse((vectors / f"{name}.bin").read_bytes())
        document = (vectors / f"{name}.collateral.json").read_bytes()
        collateral = parse_collateral(document)
        assert collateral is not None
        report = dcap_qvl.verify(quote.raw, collateral.parsed, 1750377600)
        assert judged_here(quote, document) == (
            str(report.status),
            tuple(sorted(report.advisory_ids)),
        )


@pytest.mark.parametrize("key", ["tcbLevels", "tdxModuleIdentities"])
def test_malformed_collateral_is_an_error_of_ours(key: str) -> None:
    document = json.loads(INTEL.collateral())
    tcb, identity = json.loads(document["tcb_info"]), json.loads(document["qe_identity"])
    quote = DcapQuote.parse(INTEL.quote(4))
    values: tuple[Any, ...] = (None, 7, [None], [{}], {})
    for value in values:
        with pytest.raises((EvidenceError, EndorsementError)):
            tcb_status(quote, read_pck(quote).svns, tcb | {key: value}, identity)


def domain(attributes: int = 0, service_td: bytes = bytes(48)) -> Evidence:
    quote = INTEL.quote(
        5, attributes=attributes, service_td=service_td, rtmrs=(b"\x0a" * 48,) * 3 + (bytes(48),)
    )
    return Evidence(tee=Tee.TDX, quote=quote)


def appraised(evidence: Evidence, rules: str, **trust: Any) -> tuple[str, set[str], Tier]:
    anchors = TrustAnchors(intel_root=INTEL.root_key, collateral=(INTEL.collateral(),))
    claims = verify(evidence, binding=BOUND, trust=replace(anchors, **trust), now=keys.AT)
    policy = parse_policy(f'accept = ["tdx"]\n{rules}'.encode())
    started = [
        ReferenceValue(claim=name, value=claims.measurements[name])
        for name in ("mrtd", "rtmr1", "rtmr2")
    ]
    result = appraise(
        replace(policy, references=(*started, *policy.references)), claims, now=keys.AT
    )
    return claims.tcb, {item.claim for item in result.refusals}, result.status


SERVICE = b"\x5e" * 48
REFERENCE = f'[[reference]]\nclaim = "mrservicetd"\nvalue = "{SERVICE.hex()}"\n'
OTHER = f'[[reference]]\nclaim = "mrservicetd"\nvalue = "{"00" * 48}"\n'
SEPT = "[tdx]\nrequire_attributes = []\n"


@pytest.mark.parametrize(
    ("evidence", "refused", "named"),
    [
        (domain(), "td.sept_ve_disable", SEPT),
        (domain(1 << 28 | 1), "debug", "insecure_debug = true\n"),
        (domain(1 << 28, SERVICE), "mrservicetd", REFERENCE),
    ],
    ids=["SEPT_VE_DISABLE", "debug", "service TD"],
)
def test_what_dcap_qvl_never_accepts_counts_where_a_policy_names_it(
    evidence: Evidence, refused: str, named: str
) -> None:
    assert appraised(evidence, "") == ("UpToDate", {refused}, Tier.CONTRAINDICATED)
    assert appraised(evidence, named) == ("UpToDate", set(), Tier.AFFIRMING)


@pytest.mark.parametrize("tee", ["azure-vtpm", "snp", "nvidia"])
def test_a_service_td_that_only_other_evidence_may_have_is_refused(tee: str) -> None:
    for reference in (REFERENCE, OTHER):
        _, refused, status = appraised(domain(1 << 28, SERVICE), f'{reference}tee = "{tee}"\n')
        assert refused == {"mrservicetd"}
        assert status is Tier.CONTRAINDICATED
    for ours in (f'{REFERENCE}tee = "tdx"\n', REFERENCE):
        assert appraised(domain(1 << 28, SERVICE), ours)[2] is Tier.AFFIRMING


def test_another_service_td_is_refused() -> None:
    _, refused, status = appraised(domain(1 << 28, SERVICE), OTHER)
    assert refused == {"mrservicetd"}
    assert status is Tier.CONTRAINDICATED


@pytest.mark.parametrize("bit", [1, 4, 5, 6, 29, 40])
def test_reserved_profiling_and_migration_bits_get_no_status(bit: int) -> None:
    for attributes in (1 << 28 | 1 << bit, 1 << bit, 1 << 28 | 1 | 1 << bit):
        tcb, refused, status = appraised(domain(attributes), SEPT + "forbid_attributes = []\n")
        assert (tcb, "tcb_status" in refused) == ("unknown", True)
        assert status is Tier.CONTRAINDICATED


def test_such_a_domain_is_verified_like_any_other() -> None:
    """The attributes are refused last, so a status here means that all else was good."""
    other = Intel(seed="other")
    for attributes in (0, 1 << 28 | 1):
        evidence = domain(attributes)
        for trust in (
            {"collateral": (INTEL.collateral(revoked=(3,)),)},
            {"collateral": (other.collateral(),)},
            {"collateral": (INTEL.collateral(least=9),)},
            {"intel_root": other.root_key},
        ):
            with pytest.raises(VerificationError):
                appraised(evidence, SEPT, **trust)
        for at in (54 + 136, 54 + 520, 54 + 648 + 4, 54 + 648 + 4 + 64, 54 + 648 + 4 + 128 + 6):
            damaged = bytearray(evidence.quote)
            damaged[at] ^= 1
            with pytest.raises((VerificationError, EvidenceError)):
                appraised(replace(evidence, quote=bytes(damaged)), SEPT)
