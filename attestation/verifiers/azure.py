"""Verifies Azure confidential VM evidence: hardware report, runtime data, TPM quote.

Steps, in this order, each named in the error that it raises:

1. the hardware report is genuine, by the steps of :mod:`attestation.verifiers.snp` or
   :mod:`attestation.verifiers.tdx`;
2. *runtime data*: its digest is in the report, so the vTPM's attestation key belongs to this VM;
   in version 2 it also has the data to which the quote is bound;
3. *quote signature*, *pcr digest*, *event log*: as :mod:`attestation.verifiers.tpm`;
4. *binding*: ``extraData`` of the quote is the digest of this nonce, these keys and this role.

The vTPM is software of the paravisor, which the launch measurement covers. It can be trusted only
as far as that measurement, so a policy should pin ``launch`` (SNP) or ``mrtd`` (TDX).
"""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Final

from attestation.binding import Bound
from attestation.endorsements.amd import Endorsements, check_report
from attestation.errors import BindingError, EvidenceError
from attestation.evidence import Claims, Evidence, Scalar, Tee
from attestation.quotes.azure import AzureEvidence
from attestation.quotes.snp import SnpReport
from attestation.trust import TrustAnchors
from attestation.verifiers import tdx
from attestation.verifiers.snp import snp_attributes, snp_measurements
from attestation.verifiers.tpm import (
    check_binding,
    check_event_log,
    check_pcr_values,
    check_quote_signature,
    pcr_claims,
    statement_attributes,
)

__all__ = ["VERIFIER", "AzureVerifier"]

_STEP: Final = "runtime data"


class AzureVerifier:
    """Verifies the composite; see the module for the steps.

    Claims: those of the hardware report, ``pcr.N``, and those of the TPM's log; attributes of both,
    and ``azure.*`` of the VM's configuration. ``hardware_id`` is that of the hardware report.
    ``report_data`` is the report's own, which has the digest of the runtime data; the evidence is
    bound by ``tpm.extra_data``.
    """

    def verify(
        self, evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
    ) -> Claims:
        """See :meth:`attestation.verifiers.Verifier.verify`."""
        if evidence.tee is not Tee.AZURE_VTPM:
            raise EvidenceError(f"not Azure but {evidence.tee.value} evidence", field="tee")
        composite = AzureEvidence.parse(evidence.quote)
        hardware = (
            _snp(composite, evidence, trust, now)
            if composite.hcl.tee is Tee.SNP
            else _tdx(composite, evidence, trust, now)
        )
        quote = composite.quote
        check_quote_signature(quote)
        _check_user_data(composite)
        if binding is not None:
            check_binding(quote.statement, binding)
        check_pcr_values(quote)
        attributes: dict[str, Scalar | tuple[str, ...]] = {
            **hardware.attributes,
            **statement_attributes(quote.statement),
            **{f"azure.{name}": value for name, value in composite.hcl.configuration.items()},
            "tpm.ak": quote.ak_digest.hex(),
            "tpm.extra_data": quote.statement.extra_data.hex(),
            "tpm.scope": quote.scope,
        }
        return Claims(
            tee=Tee.AZURE_VTPM,
            measurements={
                **check_event_log(quote, evidence.event_log, trust),
                **pcr_claims(quote),
                **hardware.measurements,
            },
            debug=hardware.debug,
            tcb=hardware.tcb,
            hardware_id=hardware.hardware_id,
            bound=binding is not None,
            attributes=attributes,
            unverified=hardware.unverified,
        )


VERIFIER: Final = AzureVerifier()


def _snp(
    composite: AzureEvidence, evidence: Evidence, trust: TrustAnchors, now: datetime
) -> Claims:
    if composite.td_quote:
        raise EvidenceError("an SNP report comes without a TD quote", field="td_quote")
    report = SnpReport.parse(composite.hcl.hardware_report)
    own = (composite.vcek,) if composite.vcek else ()
    endorsements = Endorsements.gather(trust.endorsements, (*evidence.endorsements, *own))
    platform = check_report(report, endorsements, trust, now)
    _check_runtime_data(composite, report.report_data)
    return Claims(
        tee=Tee.SNP,
        measurements=snp_measurements(report),
        debug=report.guest_policy["debug"],
        tcb=report.reported_tcb.hex(),
        hardware_id=platform.hardware_id,
        attributes={
            **snp_attributes(report, platform),
            "report_data": report.report_data.hex(),
        },
    )


def _tdx(
    composite: AzureEvidence, evidence: Evidence, trust: TrustAnchors, now: datetime
) -> Claims:
    if not composite.td_quote:
        raise EvidenceError("is missing beside a TDREPORT", field="td_quote")
    inner = Evidence(tee=Tee.TDX, quote=composite.td_quote, endorsements=evidence.endorsements)
    claims = tdx.VERIFIER.verify(inner, binding=None, trust=trust, now=now)
    _check_runtime_data(composite, bytes.fromhex(str(claims.attributes["report_data"])))
    return claims


def _check_runtime_data(composite: AzureEvidence, report_data: bytes) -> None:
    """Check that the hardware signed the runtime data, and with it the attestation key."""
    digest = composite.hcl.runtime_digest
    if not hmac.compare_digest(report_data, digest.ljust(len(report_data), b"\0")):
        raise BindingError("its digest is not in the hardware's report data", step=_STEP)


def _check_user_data(composite: AzureEvidence) -> None:
    """Check that the hardware signed the ``extraData`` of the TPM's quote, from version 2 on."""
    if composite.version == 1:
        return
    wanted = composite.quote.statement.extra_data.ljust(len(composite.hcl.user_data), b"\0")
    if not hmac.compare_digest(composite.hcl.user_data, wanted):
        raise BindingError("its user-data is not the quote's extraData", step=_STEP)
