"""The body of a TDX quote: the measurements of a trust domain by the TDX module.

Layout: Intel TDX DCAP Quoting Library API, appendix A.3.2 (TD 1.0, 584 bytes) and A.3.5
(TD 1.5, 648 bytes). A later, longer body starts with the fields of TD 1.5; what follows them
is kept in ``rest``. Attributes: Intel TDX module ABI, ``TD_PARAMS.ATTRIBUTES``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from attestation.errors import EvidenceError

__all__ = ["TD_ATTRIBUTES", "TD_BODY_BYTES", "TdReport"]

TD_BODY_BYTES: Final = {2: 584, 3: 648, 4: 885}
"""Bytes of a body, by its type in a quote of version 5."""

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

_TD_10: Final = struct.Struct("<16s48s48s8sQQ48s48s48s48s48s48s48s48s64s")


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
        """Return whether a bit of :data:`TD_ATTRIBUTES` is set."""
        return bool(self.td_attributes >> TD_ATTRIBUTES[attribute] & 1)

    @property
    def reserved_attributes(self) -> int:
        """The bits that are set and not in :data:`TD_ATTRIBUTES`."""
        return self.td_attributes & ~sum(1 << bit for bit in TD_ATTRIBUTES.values())

    @classmethod
    def parse(cls, data: bytes, where: str = "td_report") -> TdReport:
        """Parse a body of one of the sizes in :data:`TD_BODY_BYTES`.

        :raises EvidenceError: for another size.
        """
        if len(data) not in TD_BODY_BYTES.values():
            raise EvidenceError(f"{len(data)} bytes is no size of a TD report", field=where)
        (
            tee_tcb_svn,
            mr_seam,
            mr_signer_seam,
            seam_attributes,
            td_attributes,
            xfam,
            mr_td,
            mr_config_id,
            mr_owner,
            mr_owner_config,
            *rtmrs,
            report_data,
        ) = _TD_10.unpack_from(data)
        return cls(
            raw=data,
            tee_tcb_svn=tee_tcb_svn,
            mr_seam=mr_seam,
            mr_signer_seam=mr_signer_seam,
            seam_attributes=seam_attributes,
            td_attributes=td_attributes,
            xfam=xfam,
            mr_td=mr_td,
            mr_config_id=mr_config_id,
            mr_owner=mr_owner,
            mr_owner_config=mr_owner_config,
            rtmrs=(rtmrs[0], rtmrs[1], rtmrs[2], rtmrs[3]),
            report_data=report_data,
            tee_tcb_svn_2=data[584:600],
            mr_service_td=data[600:648],
            rest=data[648:],
        )
