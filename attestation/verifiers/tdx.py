"""Verifies Intel TDX quotes (versions 4 and 5) and SGX quotes (version 3), offline.

Steps, in this order, each named in the error that it raises:

1. *structure*: :mod:`attestation.quotes.dcap`, to the last byte;
2. *PCK chain*, *quoting enclave*, *attestation key*, *quote signature*: a genuine platform
   made the quote, under the pinned root of Intel;
3. *collateral*, *TCB*: signed and current collateral for this platform gives a TCB status;
4. *binding*: report data is the digest of this nonce, these keys and this role, in one of
   the compositions of :mod:`attestation.logs.accumulator`;
5. *event log*: the CCEL replays to the quoted RTMRs, register by register. The same module defines
   when registers kept in software count. ``container.imr`` of a CCNP server counts when the report
   data covers it *and* an event of the replayed log has a digest of ``trust.container_servers``,
   which is then the claim ``container.server``; else it is listed as unverified.

**Without any collateral** steps 1, 2, 4 and 5 still run. The TCB status is then ``unknown``, and
``tcb`` is listed in :attr:`~attestation.evidence.Claims.unverified`. No policy accepts this status,
because a policy cannot name it. The claims can still be displayed, and an appraisal refuses with
the command that fetches the collateral. The same applies to a domain with reserved, profiling or
migration bits. When collateral was given and none of it is for this platform, an
:class:`EndorsementError` is raised.

``hardware_id`` is the PPID of the PCK certificate (16 bytes): the same platform has the same PPID
in the quotes of all its TDs. Collateral of the relying party is preferred. Collateral in the
evidence is used only when the relying party has none for the platform, and only if it is signed and
current.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from attestation.binding import Bound
from attestation.endorsements.intel import (
    Collateral,
    Pck,
    Verdict,
    check_root,
    check_signatures,
    judge,
    parse_collateral,
    read_pck,
)
from attestation.errors import (
    EndorsementError,
    EvidenceError,
    FreshnessError,
    VerificationError,
)
from attestation.evidence import Claims, Evidence, Scalar, Tee
from attestation.logs.accumulator import SoftwareRegisters, check_report_data, hardware_part
from attestation.logs.eventlog import EventLog
from attestation.logs.firmwarelog import check_ccel, register_events
from attestation.quotes.dcap import DcapQuote
from attestation.quotes.tdx import TD_ATTRIBUTES, TdReport
from attestation.trust import TrustAnchors

__all__ = [
    "UNKNOWN_TCB",
    "VERIFIER",
    "DcapVerifier",
    "td_attributes",
    "td_measurements",
]

UNKNOWN_TCB: Final = "unknown"
"""The TCB status of a platform that no collateral was given for."""

_NAMED_ATTRIBUTES: Final = {f"td.{name}": bit for name, bit in TD_ATTRIBUTES.items()}
_COLLATERAL_START: Final = b"{"


class DcapVerifier:
    """Verifies TDX and SGX evidence; see the module for the steps.

    TDX claims: ``mrtd``, ``rtmr0`` to ``rtmr3``, ``mrconfigid``, ``mrowner``,
    ``mrownerconfig``, ``mrseam``, ``mrservicetd`` (TD 1.5), and those of the event log; see
    :mod:`attestation.logs.firmwarelog`. SGX claims: ``mrenclave``, ``mrsigner``.
    Attributes: ``bound``, ``report_data`` (hex), ``fmspc``, ``quote_version``; with
    collateral ``advisories``, ``tcb_evaluation``; for a TD ``td.*`` for each
    name of :data:`~attestation.quotes.tdx.TD_ATTRIBUTES`, and ``log.rtmrN.events``, see
    :func:`attestation.logs.firmwarelog.register_events`; for an enclave
    ``sgx.isv_prod_id`` and ``sgx.isv_svn``.
    """

    def verify(
        self, evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
    ) -> Claims:
        """See :meth:`attestation.verifiers.Verifier.verify`."""
        if evidence.tee not in (Tee.TDX, Tee.SGX):
            raise EvidenceError(
                f"not an Intel TEE's but {evidence.tee.value} evidence", field="tee"
            )
        quote = DcapQuote.parse(evidence.quote)
        if quote.tee is not evidence.tee:
            raise EvidenceError(
                f"is of {quote.tee.value}, not of {evidence.tee.value}", field="quote"
            )
        pck = read_pck(quote)
        verdict = _judge(quote, pck, evidence, trust, now)
        body = quote.body
        log = EventLog.parse(evidence.event_log) if evidence.event_log else None
        software = SoftwareRegisters.read(log)
        server = _measured_server(log, trust) if software.container else b""
        proven = check_report_data(body.report_data, binding, software)
        attributes: dict[str, Scalar | tuple[str, ...]] = {
            "fmspc": pck.fmspc.hex().upper(),
            "quote_version": quote.version,
            "report_data": body.report_data.hex(),
        }
        if isinstance(body, TdReport):
            measurements = td_measurements(body)
            measurements = {
                **check_ccel(log, body.rtmrs, known=trust.known_events),
                **measurements,
            }
            attributes |= {**td_attributes(body), **register_events(log)}
        else:
            if evidence.event_log:
                raise EvidenceError("SGX evidence has no event log", field="event_log")
            measurements = {"mrenclave": body.mr_enclave, "mrsigner": body.mr_signer}
            attributes |= {"sgx.isv_prod_id": body.isv_prod_id, "sgx.isv_svn": body.isv_svn}
        judged = not verdict.missing
        if judged:
            attributes |= {
                "advisories": verdict.advisories,
                "tcb_evaluation": verdict.evaluation,
            }
        else:
            attributes["tcb_missing"] = verdict.missing
        return Claims(
            tee=quote.tee,
            measurements={
                **software.claims,
                **({"container.server": server} if server else {}),
                **measurements,
            },
            debug=body.debug,
            tcb=verdict.status if judged else UNKNOWN_TCB,
            hardware_id=pck.identity,
            bound=binding is not None,
            attributes=attributes,
            unverified=(
                *(() if judged else ("tcb",)),
                *software.unproven(bound=proven, server_measured=bool(server)),
            ),
        )


VERIFIER: Final = DcapVerifier()


def _judge(
    quote: DcapQuote, pck: Pck, evidence: Evidence, trust: TrustAnchors, now: datetime
) -> Verdict:
    """Check the quote's signatures and judge its TCB; each valid signature is checked once."""
    fetch = pck.fetch_command(quote.tee)
    collateral = _choose(quote.tee, pck, evidence, trust, now)
    if collateral is None:
        check_signatures(quote, trust.intel_root, now)
        return Verdict(missing=fetch)
    try:
        root = check_root(quote, trust.intel_root)
        collateral.check_windows(now, fetch)
        verdict = judge(quote, pck, collateral, root, now)
    except (VerificationError, EvidenceError) as refused:
        # A fault of the quote itself is reported first, before one of the collateral.
        check_signatures(quote, trust.intel_root, now)
        if isinstance(refused, FreshnessError) and not refused.hint:
            refused.hint = fetch
        raise
    if verdict.missing:
        check_signatures(quote, trust.intel_root, now)
    return verdict


def _choose(
    tee: Tee, pck: Pck, evidence: Evidence, trust: TrustAnchors, now: datetime
) -> Collateral | None:
    """Return the collateral for the quote's platform; ``None`` when there is none at all.

    Of several documents for one platform the one with the highest evaluation number that is
    current is taken, so that an older one that is still current cannot hide a newer. A document of
    the relying party that cannot be read does not affect the others.

    :raises EndorsementError: when there is collateral, and none for this platform; it names the
        documents that cannot be read.
    :raises EvidenceError: when collateral that came with the evidence is malformed.
    """
    given, unread = _readable(trust.collateral)
    found = len(unread)
    for source in (given, map(parse_collateral, _documents(evidence.endorsements))):
        usable = [item for item in source if item is not None]
        found += len(usable)
        mine = [item for item in usable if item.fmspc == pck.fmspc and item.tee is tee]
        mine.sort(key=lambda item: (item.ca == pck.ca, item.evaluation), reverse=True)
        for item in mine:
            if all(start <= now <= end for _, start, end in item.windows):
                return item
        if mine:
            return mine[0]
    if found:
        raise EndorsementError(
            f"no collateral for FMSPC {pck.fmspc.hex().upper()} ({tee.value})"
            + (f"; not read: {'; '.join(unread)}" if unread else ""),
            step="collateral",
            hint=pck.fetch_command(tee),
        )
    return None


def _readable(documents: Iterable[bytes]) -> tuple[list[Collateral], list[str]]:
    """Return the collateral among the relying party's documents, and the faults of the others."""
    given: list[Collateral] = []
    unread: list[str] = []
    for number, data in enumerate(documents, start=1):
        try:
            found = parse_collateral(data)
        except EvidenceError as error:
            unread.append(f"document {number}, {error}")
        else:
            given += [found] if found is not None else []
    return given, unread


def _documents(items: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(item for item in items if item.lstrip()[:1] == _COLLATERAL_START)


def _measured_server(log: EventLog | None, trust: TrustAnchors) -> bytes:
    """Return the digest of a trusted container server in the replayed log."""
    if log is None or not trust.container_servers:
        return b""
    found = (
        digest
        for event in hardware_part(log).events
        if event.extends
        for digest in event.digests.values()
        if digest in trust.container_servers
    )
    return next(found, b"")


def td_measurements(body: TdReport) -> dict[str, bytes]:
    """Return the measurements of the TDX module, by the names that policies use."""
    found = {
        "mrtd": body.mr_td,
        "mrconfigid": body.mr_config_id,
        "mrowner": body.mr_owner,
        "mrownerconfig": body.mr_owner_config,
        "mrseam": body.mr_seam,
        **{f"rtmr{number}": value for number, value in enumerate(body.rtmrs)},
    }
    if body.mr_service_td:
        found["mrservicetd"] = body.mr_service_td
    return found


def td_attributes(body: TdReport) -> dict[str, Scalar | tuple[str, ...]]:
    """Return the attributes of a TD, by the names that policies use."""
    return {
        **{name: bool(body.td_attributes >> bit & 1) for name, bit in _NAMED_ATTRIBUTES.items()},
        "td.reserved": f"{body.reserved_attributes:#x}",
        "td.xfam": f"{body.xfam:#x}",
    }
