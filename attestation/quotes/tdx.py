"""The body of a TDX quote: what the TDX module measured of a trust domain.

Layout: Intel TDX DCAP Quoting Library API, appendix A.3.2 (TD 1.0, 584 bytes) and A.3.5
(TD 1.5, 648 bytes). A later, longer body starts with the fields of TD 1.5; what follows them
is kept in ``rest``. Attributes: Intel TDX module ABI, ``TD_PARAMS.ATTRIBUTES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attestation.quotes.cursor import Cursor

__all__ = ["TD_ATTRIBUTES", "TD_BODY_BYTES", "TdReport"]

TD_BODY_BYTES: Final = {2: 584, 3: 648, 4: 885}
"""Bytes of a body, by the type that a version 5 quote names it with."""

TD_ATTRIBUTES: Final = {
    "debug": 0,
    "hgs_plus_prof": 4,
    "perf_prof": 5,
    "pmt_prof": 6,
    "icssd": 16,
    "lass": 27,
    "sept_ve_disable": 28,
    "migratable": 29,
    "pks": 30,
    "kl": 31,
    "tpa": 62,
    "perfmon": 63,
}
"""Bits of ``ATTRIBUTES``, by the names that policies use."""

_TD_10_BYTES: Final = 584


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The fields of a TD report, as the specification names them. Nothing is verified."""

    raw: bytes
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: int
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes = b""
    mr_service_td: bytes = b""
    rest: bytes = b""

    @property
    def debug(self) -> bool:
        """True when the domain's memory can be read by its host."""
        return self.has("debug")

    def has(self, attribute: str) -> bool:
        """Say whether a bit of :data:`TD_ATTRIBUTES` is set."""
        return bool(self.td_attributes >> TD_ATTRIBUTES[attribute] & 1)

    @property
    def reserved_attributes(self) -> int:
        """The bits that are set and have no name here."""
        return self.td_attributes & ~sum(1 << bit for bit in TD_ATTRIBUTES.values())

    @classmethod
    def parse(cls, data: bytes, where: str = "td_report") -> TdReport:
        """Parse a body of one of the sizes in :data:`TD_BODY_BYTES`.

        :raises EvidenceError: naming field and offset.
        """
        read = Cursor(data, where, limit=max(TD_BODY_BYTES.values()), little=True)
        if len(data) not in TD_BODY_BYTES.values():
            raise read.fail(f"{len(data)} bytes is no size of a TD report", "size")
        tee_tcb_svn = read.take(16, "tee_tcb_svn")
        mr_seam = read.take(48, "mr_seam")
        mr_signer_seam = read.take(48, "mr_signer_seam")
        seam_attributes = read.take(8, "seam_attributes")
        td_attributes = read.integer(8, "td_attributes")
        xfam = read.integer(8, "xfam")
        mr_td, config_id, owner, owner_config = (
            read.take(48, name) for name in ("mr_td", "mr_config_id", "mr_owner", "mr_owner_config")
        )
        rtmr0, rtmr1, rtmr2, rtmr3 = (read.take(48, f"rtmr{number}") for number in range(4))
        report_data = read.take(64, "report_data")
        longer = len(data) > _TD_10_BYTES
        return cls(
            raw=data,
            tee_tcb_svn=tee_tcb_svn,
            mr_seam=mr_seam,
            mr_signer_seam=mr_signer_seam,
            seam_attributes=seam_attributes,
            td_attributes=td_attributes,
            xfam=xfam,
            mr_td=mr_td,
            mr_config_id=config_id,
            mr_owner=owner,
            mr_owner_config=owner_config,
            rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3),
            report_data=report_data,
            tee_tcb_svn_2=read.take(16, "tee_tcb_svn_2") if longer else b"",
            mr_service_td=read.take(48, "mr_service_td") if longer else b"",
            rest=read.take(read.remaining, "rest"),
        )
