"""The hardware minimums of a policy: TCB, guest policy, TPM state.

Each rule reads one verified attribute of the claims. If the verifier did not report the attribute,
the rule refuses, as it does for a wrong value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from attestation.evidence import Claims, Origin, Tee
from attestation.policy.launch import PCR_BANKS, applicable
from attestation.policy.model import AppraisalPolicy, SgxRules, SnpRules, TdxRules, TpmRules
from attestation.policy.result import Finding, Tier

__all__ = ["hardware_findings"]

_UPDATE: Final = "update firmware and microcode of the host, then attest again"
_COMMIT: Final = "update firmware and microcode of the host and commit them"


def hardware_findings(policy: AppraisalPolicy, claims: Claims) -> Iterator[Finding]:
    """Yield a finding for each hardware rule that applies to this kind of evidence.

    Azure's composite is judged by the rules of its TPM and of the hardware report inside it, which
    its attributes show to be SNP or TDX; one without either is refused.
    """
    inside_snp = claims.tee is Tee.AZURE_VTPM and _has(claims, "snp.")
    inside_tdx = claims.tee is Tee.AZURE_VTPM and _has(claims, "td.")
    if claims.tee is Tee.TDX or inside_tdx:
        yield from _tdx(policy.tdx, claims)
        yield from _service_domain(policy, claims)
    if claims.tee is Tee.SGX:
        yield from _sgx(policy.sgx, claims)
    if claims.tee is Tee.SNP or inside_snp:
        yield from _snp(policy.snp, claims)
    if claims.tee in (Tee.TPM, Tee.AZURE_VTPM):
        yield from _tpm(policy.tpm, claims)
    if claims.tee is Tee.AZURE_VTPM and not (inside_snp or inside_tdx):
        yield _check(
            "report",
            good=False,
            expected="an SNP or TDX report",
            actual="absent",
            remedy="send the hardware report together with the TPM's quote",
        )


def _has(claims: Claims, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in claims.attributes)


def _intel_tcb(rules: TdxRules | SgxRules, claims: Claims, table: str) -> Iterator[Finding]:
    yield _check(
        "tcb_status",
        good=claims.tcb in rules.tcb_status and "tcb" not in claims.unverified,
        expected=" or ".join(rules.tcb_status) or "nothing: no TCB status is accepted",
        actual=(claims.tcb or "absent") + (" (not judged)" if "tcb" in claims.unverified else ""),
        remedy=str(claims.attributes["tcb_missing"])
        if "tcb_missing" in claims.attributes
        else f"{_UPDATE}; or accept the status in [{table}] tcb_status",
    )
    advisories = claims.attributes.get("advisories")
    listed = advisories if isinstance(advisories, tuple) else ()
    unexpected = [item for item in listed if item not in rules.advisories_allowed]
    yield _check(
        "advisories",
        good=isinstance(advisories, tuple) and not unexpected,
        expected="none" + _other(rules.advisories_allowed),
        actual="absent" if advisories is None else ", ".join(listed) or "none",
        remedy=f"{_UPDATE}; or accept {', '.join(unexpected)} in [{table}] advisories_allowed"
        if unexpected
        else "give collateral, which lists the open advisories of the platform",
    )
    if rules.min_tcb_evaluation:
        yield _minimum(claims, "tcb_evaluation", rules.min_tcb_evaluation, "fetch newer collateral")


def _tdx(rules: TdxRules, claims: Claims) -> Iterator[Finding]:
    yield from _intel_tcb(rules, claims, "tdx")
    for name in rules.require_attributes:
        yield _flag(claims, f"td.{name}", wanted=True)
    for name in rules.forbid_attributes:
        yield _flag(claims, f"td.{name}", wanted=False)


def _service_domain(policy: AppraisalPolicy, claims: Claims) -> Iterator[Finding]:
    """Refuse a service TD that no reference value names: it could migrate or read this domain.

    Only reference values that this evidence must match are considered.
    """
    bound = claims.measurements.get("mrservicetd", b"")
    named = any(item.claim == "mrservicetd" for item in applicable(policy, claims.tee))
    if any(bound) and not named:
        yield _check(
            "mrservicetd",
            good=False,
            expected="no service TD",
            actual=bound.hex(),
            category="configuration",
            remedy="start the domain without one, or name it with a reference for mrservicetd",
        )


def _sgx(rules: SgxRules, claims: Claims) -> Iterator[Finding]:
    yield from _intel_tcb(rules, claims, "sgx")
    for name, accepted in (("mrenclave", rules.mrenclave), ("mrsigner", rules.mrsigner)):
        value = claims.measurements.get(name)
        if accepted:
            yield _check(
                f"sgx.{name}",
                good=value in accepted and name not in claims.unverified,
                expected=" or ".join(item.hex() for item in accepted),
                actual=value.hex() if value is not None else "absent",
                category="executables",
                remedy=f"run the expected enclave, or add it to [sgx] {name}",
            )
    if rules.isv_prod_id is not None:
        actual = claims.attributes.get("sgx.isv_prod_id")
        yield _check(
            "sgx.isv_prod_id",
            good=actual == rules.isv_prod_id and not isinstance(actual, bool),
            expected=str(rules.isv_prod_id),
            actual="absent" if actual is None else str(actual),
            category="executables",
            remedy="run the expected enclave",
        )
    if rules.min_isv_svn is not None:
        yield _minimum(
            claims, "sgx.isv_svn", rules.min_isv_svn, "run a newer enclave", "executables"
        )


def _snp(rules: SnpRules, claims: Claims) -> Iterator[Finding]:
    vmpl = claims.attributes.get("snp.vmpl")
    yield _check(
        "snp.vmpl",
        good=isinstance(vmpl, int) and not isinstance(vmpl, bool) and vmpl <= rules.max_vmpl,
        expected=f"at most {rules.max_vmpl}",
        actual="absent" if vmpl is None else str(vmpl),
        category="configuration",
        remedy="ask for the report at a more privileged level, or raise [snp] max_vmpl",
    )
    if not rules.allow_migration:
        yield _flag(claims, "snp.policy.migration", wanted=False)
    if not rules.allow_smt:
        yield _flag(claims, "snp.policy.smt", wanted=False)
    if rules.require_single_socket:
        yield _flag(claims, "snp.policy.single_socket", wanted=True)
    for name in rules.require_policy:
        yield _flag(claims, f"snp.policy.{name}", wanted=True)
    for name in rules.require_platform:
        yield _flag(claims, f"snp.platform.{name}", wanted=True)
    for kind, minimums, remedy in (
        ("reported_tcb", rules.min_tcb, _UPDATE),
        ("committed_tcb", rules.min_committed_tcb, f"{_COMMIT}, then attest again"),
        ("launch_tcb", rules.min_launch_tcb, f"{_COMMIT}, then launch the guest again"),
    ):
        for component, least in minimums.items():
            yield _minimum(claims, f"snp.{kind}.{component}", least, remedy)
    for kind, bits in (
        ("launch_mit_vector", rules.require_launch_mitigations),
        ("current_mit_vector", rules.require_current_mitigations),
    ):
        for bit in bits:
            yield _mitigation(claims, f"snp.{kind}", bit)
    if rules.min_guest_svn is not None:
        yield _minimum(
            claims, "snp.guest_svn", rules.min_guest_svn, "launch a newer image", "executables"
        )
    if rules.products:
        product = claims.attributes.get("snp.product")
        yield _check(
            "snp.product",
            good=product in rules.products,
            expected=" or ".join(rules.products),
            actual="absent" if product is None else str(product),
            remedy="run on one of these products, or add this one to [snp] products",
        )


def _mitigation(claims: Claims, name: str, bit: int) -> Finding:
    vector = claims.attributes.get(name)
    known = isinstance(vector, int) and not isinstance(vector, bool)
    return _check(
        f"{name}.{bit}",
        good=isinstance(vector, int) and known and bool(vector >> bit & 1),
        expected="set",
        actual=f"not set in {vector:#x}" if known else "absent: reports have it from version 5 on",
        remedy=f"{_COMMIT}, then launch the guest again",
    )


def _tpm(rules: TpmRules, claims: Claims) -> Iterator[Finding]:
    if rules.require_safe_clock:
        yield _flag(claims, "tpm.safe", wanted=True)
    if rules.firmware:
        firmware = claims.attributes.get("tpm.firmware")
        yield _check(
            "tpm.firmware",
            good=firmware in rules.firmware and not isinstance(firmware, bool),
            expected=" or ".join(f"{item:#x}" for item in rules.firmware),
            actual=f"{firmware:#x}" if isinstance(firmware, int) else "absent",
            remedy="update the TPM, or add this version to [tpm] firmware",
        )
    for index in rules.pcrs:
        register = f"pcr.{index}"
        covered = [bank for bank in PCR_BANKS if register + bank in claims.measurements]
        yield _check(
            f"require.{register}",
            good=bool(covered),
            expected="covered by the quote",
            actual=f"covered as {register}{covered[0]}" if covered else "absent",
            category="runtime-opaque",
            remedy="quote this register as well, of a SHA-256, SHA-384 or SHA-512 bank",
        )


def _flag(claims: Claims, name: str, *, wanted: bool) -> Finding:
    value = claims.attributes.get(name)
    return _check(
        name,
        good=value is wanted,
        expected=str(wanted).lower(),
        actual="absent" if value is None else str(value).lower(),
        category="configuration",
        remedy="start the environment with this setting changed, or relax the policy",
    )


def _minimum(
    claims: Claims, name: str, least: int, remedy: str, category: str = "hardware"
) -> Finding:
    value = claims.attributes.get(name)
    return _check(
        name,
        good=isinstance(value, int) and not isinstance(value, bool) and value >= least,
        expected=f"at least {least}",
        actual="absent" if value is None else str(value),
        category=category,
        remedy=remedy,
    )


def _check(
    claim: str,
    *,
    good: bool,
    expected: str,
    actual: str,
    category: str = "hardware",
    remedy: str = "",
) -> Finding:
    return Finding(
        claim=claim,
        tier=Tier.AFFIRMING if good else Tier.CONTRAINDICATED,
        expected=expected,
        actual=actual,
        category=category,
        remedy="" if good else remedy,
        origin=Origin.QUOTE,
    )


def _other(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return f", or only {text}" if text else ""
