"""Verifies AMD SEV-SNP attestation reports, versions 2 to 5, of Milan, Genoa and Turin.

Steps, in this order, each named in the error that it raises:

1. *structure*: :mod:`attestation.quotes.snp`, to the last byte;
2. *AMD chain*: VCEK or VLEK, ASK or ASVK, and an ARK whose key is pinned; validity now, and
   revocation lists if any are given;
3. *report signature*;
4. *reported TCB*, *chip id*: those of the certificate (a Turin chip id has 8 bytes, and its
   TCB has another layout with the FMC);
5. *binding*: report data is the digest of this nonce, these keys and this role, in one of
   the compositions of :mod:`attestation.logs.accumulator`, which also describes what a log proves
   on SNP, where the hardware has no register for software.

Certificates and CRLs come from the relying party (``trust.endorsements``) or with the evidence;
only the root is trusted without a signature. A report may mask its chip id. With a VCEK the chip is
known nevertheless; with a VLEK it is not, and ``hardware_id`` is then empty, which matches no list
of nodes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from attestation.binding import Bound
from attestation.endorsements.amd import Endorsements, SnpPlatform, check_report
from attestation.errors import EvidenceError
from attestation.evidence import Claims, Evidence, Scalar, Tee
from attestation.logs.accumulator import (
    SoftwareRegisters,
    check_report_data,
    refuse_hardware_events,
)
from attestation.logs.eventlog import EventLog
from attestation.quotes.snp import SnpReport, tcb_versions
from attestation.trust import TrustAnchors

__all__ = ["VERIFIER", "SnpVerifier", "snp_attributes", "snp_measurements"]


class SnpVerifier:
    """Verifies SNP evidence; see the module for the steps.

    Claims: ``launch`` (MEASUREMENT), ``host_data``, and where they are set
    ``id_key_digest`` and ``author_key_digest``. Attributes: ``bound``, ``report_data``,
    ``snp.product``, ``snp.vmpl``, ``snp.policy.*``, ``snp.platform.*``,
    ``snp.reported_tcb.*``, ``snp.committed_tcb`` and ``snp.launch_tcb`` in hex and by component
    (``.*``), ``snp.signer``, ``snp.csp`` (of a VLEK), ``snp.chip_id_masked``,
    ``snp.mask_chip_key``, ``snp.author_key``, and from version 5 on
    ``snp.launch_mit_vector`` and ``snp.current_mit_vector``. The TCB status is the reported
    TCB in hex.
    """

    def verify(
        self, evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
    ) -> Claims:
        """See :meth:`attestation.verifiers.Verifier.verify`."""
        if evidence.tee is not Tee.SNP:
            raise EvidenceError(f"not SNP but {evidence.tee.value} evidence", field="tee")
        log = EventLog.parse(evidence.event_log) if evidence.event_log else None
        if log is not None:
            refuse_hardware_events(log)
        software = SoftwareRegisters.read(log)
        report = SnpReport.parse(evidence.quote)
        endorsements = Endorsements.gather(trust.endorsements, evidence.endorsements)
        platform = check_report(report, endorsements, trust, now)
        proven = check_report_data(report.report_data, binding, software)
        return Claims(
            tee=Tee.SNP,
            measurements={**software.claims, **snp_measurements(report)},
            debug=report.guest_policy["debug"],
            tcb=report.reported_tcb.hex(),
            hardware_id=platform.hardware_id,
            bound=binding is not None,
            attributes={
                **snp_attributes(report, platform),
                "report_data": report.report_data.hex(),
            },
            unverified=software.unproven(bound=proven, server_measured=False),
        )


VERIFIER: Final = SnpVerifier()


def snp_measurements(report: SnpReport) -> dict[str, bytes]:
    """Return the measurements of a report, by the names that policies use."""
    found = {"launch": report.measurement, "host_data": report.host_data}
    if any(report.id_key_digest):
        found["id_key_digest"] = report.id_key_digest
    if report.author_key_enabled:
        found["author_key_digest"] = report.author_key_digest
    return found


def snp_attributes(report: SnpReport, platform: SnpPlatform) -> dict[str, Scalar]:
    """Return all other facts of a report, by the names that policies use."""
    versions = {
        "reported_tcb": report.reported_tcb,
        "committed_tcb": report.committed_tcb,
        "launch_tcb": report.launch_tcb,
    }
    found: dict[str, Scalar] = {
        "snp.author_key": report.author_key_enabled,
        "snp.chip_id_masked": not any(report.chip_id),
        "snp.committed_tcb": report.committed_tcb.hex(),
        "snp.family_id": report.family_id.hex(),
        "snp.guest_svn": report.guest_svn,
        "snp.image_id": report.image_id.hex(),
        "snp.launch_tcb": report.launch_tcb.hex(),
        "snp.mask_chip_key": report.mask_chip_key,
        "snp.product": platform.product,
        "snp.signer": platform.signer,
        "snp.version": report.version,
        "snp.vmpl": report.vmpl,
        **{f"snp.policy.{name}": value for name, value in report.guest_policy.items()},
        **{f"snp.platform.{name}": value for name, value in report.platform.items()},
    }
    for kind, raw in versions.items():
        for component, number in tcb_versions(raw, platform.product).items():
            found[f"snp.{kind}.{component}"] = number
    if report.launch_mit_vector is not None and report.current_mit_vector is not None:
        found["snp.launch_mit_vector"] = report.launch_mit_vector
        found["snp.current_mit_vector"] = report.current_mit_vector
    if platform.csp:
        found["snp.csp"] = platform.csp
    return found
