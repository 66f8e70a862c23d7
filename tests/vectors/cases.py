"""One subject for each kind of evidence: how to make it, and what to trust when it is judged."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from attestation.attesters.sample import SampleAttester
from attestation.binding import Binding, Role
from attestation.evidence import Evidence, Tee
from attestation.policy.model import AppraisalPolicy, ReferenceValue, TdxRules
from attestation.trust import TrustAnchors, key_digest
from tests.fakes.synthetic_tpm import SyntheticTpm
from tests.vectors import azure, keys
from tests.vectors.amd import Amd
from tests.vectors.intel import APP, JOB, Intel, event_log

ROOT = Path(__file__).parents[2]
SOFTWARE = keys.stream("software", 32)


def binding(**changed: object) -> Binding:
    """Return a binding; each argument replaces one of its fields."""
    fields: dict[str, object] = {
        "role": Role.CLIENT,
        "nonce": keys.stream("nonce", 32),
        "verifier_id": keys.stream("verifier", 32),
        "tls_key": b"a TLS key",
        "hpke_key": b"an HPKE key",
        "node_id": "site-a",
        "workload": keys.stream("workload", 32),
    }
    return Binding(**{**fields, **changed})  # type: ignore[arg-type]


OTHER_BINDINGS: dict[str, dict[str, object]] = {
    "nonce": {"nonce": keys.stream("another nonce", 32)},
    "role": {"role": Role.COORDINATOR},
    "node": {"node_id": "site-b"},
    "verifier": {"verifier_id": keys.stream("another verifier", 32)},
    "tls key": {"tls_key": b"another TLS key"},
    "hpke key": {"hpke_key": b"another HPKE key"},
    "workload": {"workload": keys.stream("another workload", 32)},
}
"""Every way in which evidence can be bound to something else."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Evidence of one kind, in all the ways in which a test may want it.

    ``make``      evidence over a binding
    ``debug``     the same of an environment in debug mode; ``None`` where there is no such
    ``trust``     under which it is genuine; ``stranger`` trusts another root
    ``policy``    affirms it, but for the allow list of nodes
    ``regions``   (name, start, end) of the fields of ``quote``, for mutation
    ``windows``   times before and after everything that vouches for it is valid
    """

    name: str
    tee: Tee
    make: Callable[[Binding], Evidence]
    trust: TrustAnchors
    stranger: TrustAnchors
    policy: AppraisalPolicy
    debug: Callable[[Binding], Evidence] | None = None
    regions: Callable[[bytes], list[tuple[str, int, int]]] = field(
        default=lambda quote: [("quote", 0, len(quote))]
    )
    times: bool = True


def dcap_regions(quote: bytes) -> list[tuple[str, int, int]]:
    """Return the fields of a DCAP quote with their offsets."""
    version = quote[0]
    start = 54 if version == 5 else 48
    size = int.from_bytes(quote[50:54], "little") if version == 5 else 584 if version == 4 else 384
    end = start + size
    length = int.from_bytes(quote[end : end + 4], "little")
    at = end + 4
    named = [
        ("version", 0, 2),
        ("key type", 2, 4),
        ("tee type", 4, 8),
        ("svn", 8, 12),
        ("vendor", 12, 28),
        ("user data", 28, 48),
        *([("body descriptor", 48, 54)] if version == 5 else []),
        ("body", start, end),
        ("signature size", end, at),
        ("signature", at, at + 64),
        ("attestation key", at + 64, at + 128),
    ]
    inner = at + 128 + (6 if version > 3 else 0)
    if version > 3:
        named.append(("certification header", at + 128, inner))
    named += [
        ("qe report", inner, inner + 384),
        ("qe signature", inner + 384, inner + 448),
        ("qe auth data", inner + 448, inner + 482),
        ("certificates header", inner + 482, inner + 488),
        ("certificates", inner + 488, at + length),
    ]
    if at + length < len(quote):
        named.append(("padding", at + length, len(quote)))
    return named


def snp_regions(report: bytes) -> list[tuple[str, int, int]]:
    """Return the fields of an SNP report with their offsets."""
    edges = {
        "version": 0x00,
        "guest svn": 0x04,
        "policy": 0x08,
        "family id": 0x10,
        "image id": 0x20,
        "vmpl": 0x30,
        "signature algo": 0x34,
        "current tcb": 0x38,
        "platform info": 0x40,
        "key info": 0x48,
        "report data": 0x50,
        "measurement": 0x90,
        "host data": 0xC0,
        "id key digest": 0xE0,
        "author key digest": 0x110,
        "report id": 0x140,
        "report id ma": 0x160,
        "reported tcb": 0x180,
        "cpuid": 0x188,
        "chip id": 0x1A0,
        "committed tcb": 0x1E0,
        "launch tcb": 0x1F0,
        "reserved": 0x1F8,
        "r": 0x2A0,
        "s": 0x2E8,
        "signature reserved": 0x330,
    }
    ends = [*list(edges.values())[1:], len(report)]
    return [(name, start, end) for (name, start), end in zip(edges.items(), ends, strict=True)]


def _policy(tee: Tee, pinned: dict[str, bytes], **extra: object) -> AppraisalPolicy:
    return AppraisalPolicy(
        name="test",
        accept=(tee,),
        references=tuple(
            ReferenceValue(claim=claim, value=value, name="test") for claim, value in pinned.items()
        ),
        **extra,  # type: ignore[arg-type]
    )


def _tdx(version: int) -> Subject:
    intel = Intel()
    log, rtmrs = event_log()

    def make(bound: Binding, attributes: int = 1 << 28) -> Evidence:
        quote = intel.quote(
            version, report_data=bound.report_data(), rtmrs=rtmrs, attributes=attributes
        )
        return Evidence(tee=Tee.TDX, quote=quote, event_log=log)

    return Subject(
        name=f"tdx-v{version}",
        tee=Tee.TDX,
        make=make,
        debug=lambda bound: make(bound, 1 << 28 | 1),
        trust=TrustAnchors(intel_root=intel.root_key, collateral=(intel.collateral(),)),
        stranger=TrustAnchors(collateral=(intel.collateral(),)),
        policy=replace(
            _policy(
                Tee.TDX,
                {"mrtd": keys.stream("mrtd", 48), "rtmr1": rtmrs[1], "rtmr2": rtmrs[2]},
                require=("app", "job"),
            ),
            tdx=TdxRules(min_tcb_evaluation=18),
        ),
        regions=dcap_regions,
    )


def _sgx() -> Subject:
    intel = Intel()

    def make(bound: Binding, attributes: int = 5) -> Evidence:
        quote = intel.sgx_quote(report_data=bound.report_data(), attributes=attributes)
        return Evidence(tee=Tee.SGX, quote=quote)

    return Subject(
        name="sgx-v3",
        tee=Tee.SGX,
        make=make,
        debug=lambda bound: make(bound, 7),
        trust=TrustAnchors(intel_root=intel.root_key, collateral=(intel.collateral("SGX"),)),
        stranger=TrustAnchors(collateral=(intel.collateral("SGX"),)),
        policy=_policy(Tee.SGX, {"mrenclave": keys.stream("mrenclave", 32)}),
        regions=dcap_regions,
    )


def _snp(product: str, version: int, kind: str) -> Subject:
    amd = Amd(product=product)
    endorsements = (amd.leaf(kind), amd.authorities("ask" if kind == "vcek" else "asvk"))

    def make(bound: Binding, policy: int = 3 << 16) -> Evidence:
        report = amd.report(version, kind=kind, report_data=bound.report_data(), policy=policy)
        return Evidence(tee=Tee.SNP, quote=report)

    return Subject(
        name=f"snp-{product.lower()}-v{version}-{kind}",
        tee=Tee.SNP,
        make=make,
        debug=lambda bound: make(bound, 3 << 16 | 1 << 19),
        trust=TrustAnchors(amd_ark_keys=frozenset({amd.root_key}), endorsements=endorsements),
        stranger=TrustAnchors(endorsements=endorsements),
        policy=_policy(Tee.SNP, {"launch": keys.stream("launch measurement", 48)}),
        regions=snp_regions,
    )


def _azure(inside: str) -> Subject:
    amd, intel = Amd(), Intel()
    chosen = intel if inside == "tdx" else None

    def make(bound: Binding, debug: bool = False) -> Evidence:
        document = azure.evidence(
            bound.qualifying_data(),
            intel=chosen,
            policy=3 << 16 | debug << 19,
            attributes=1 << 28 | debug,
        )
        return Evidence(tee=Tee.AZURE_VTPM, quote=document)

    endorsements, collateral = (amd.authorities(),), (intel.collateral(),)
    return Subject(
        name=f"azure-{inside}",
        tee=Tee.AZURE_VTPM,
        make=make,
        debug=lambda bound: make(bound, True),
        trust=TrustAnchors(
            amd_ark_keys=frozenset({amd.root_key}),
            intel_root=intel.root_key,
            endorsements=endorsements,
            collateral=collateral,
        ),
        stranger=TrustAnchors(endorsements=endorsements, collateral=collateral),
        policy=_policy(
            Tee.AZURE_VTPM,
            {
                **(
                    {"mrtd": keys.stream("mrtd", 48)}
                    if chosen
                    else {"launch": keys.stream("launch measurement", 48)}
                ),
                "pcr.4": azure.PCRS[4],
                "pcr.9": azure.PCRS[9],
            },
        ),
    )


def _sample() -> Subject:
    key = keys.ec_key("a development key")

    def make(bound: Binding, debug: bool = False) -> Evidence:
        attester = SampleAttester(
            key, keys.stream("sample", 32), debug=debug, clock=keys.AT.timestamp
        )
        attester.extend("app", APP)
        attester.extend("job", JOB)
        attester.extend("software", SOFTWARE)
        return attester.collect(bound)

    return Subject(
        name="sample",
        tee=Tee.SAMPLE,
        make=make,
        debug=lambda bound: make(bound, True),
        trust=TrustAnchors(sample_keys=frozenset({key_digest(key.public_key())})),
        stranger=TrustAnchors(),
        policy=_policy(Tee.SAMPLE, {"app": APP, "software": SOFTWARE}, insecure_sample=True),
        times=False,
    )


def _tpm() -> Subject:
    tpm = SyntheticTpm(key=keys.ec_key("a TPM's attestation key"))
    tpm.measure("app", APP)
    tpm.measure("job", JOB)
    ak = key_digest(tpm.key.public_key())
    return Subject(
        name="tpm",
        tee=Tee.TPM,
        make=tpm.evidence,
        trust=TrustAnchors(tpm_aks=frozenset({ak})),
        stranger=TrustAnchors(),
        policy=_policy(Tee.TPM, {"app": APP, "pcr.0": bytes(32)}),
        times=False,
    )


def subjects() -> tuple[Subject, ...]:
    """Return one subject of each kind."""
    return (
        _tdx(4),
        _tdx(5),
        _sgx(),
        _snp("Milan", 2, "vcek"),
        _snp("Milan", 3, "vlek"),
        _snp("Genoa", 3, "vcek"),
        _snp("Turin", 5, "vcek"),
        _azure("snp"),
        _azure("tdx"),
        _tpm(),
        _sample(),
    )


BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
AFTER = dt.datetime(2050, 1, 1, tzinfo=dt.UTC)
