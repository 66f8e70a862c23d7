"""An SGX enclave report, 384 bytes (Intel SDM volume 3D, table 38-21, ``REPORT``).

It is the body of an SGX quote, and the Quoting Enclave's own report inside every DCAP quote.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from attestation.errors import EvidenceError

__all__ = ["ENCLAVE_REPORT_BYTES", "EnclaveReport"]

ENCLAVE_REPORT_BYTES: Final = 384
_REPORT: Final = struct.Struct("<16sI28x16s32s32x32s96xHH60x64s")
_DEBUG: Final = 1 << 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """The fields of a report, as the specification names them. Nothing is verified."""

    raw: bytes
    cpu_svn: bytes
    misc_select: int
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes

    @property
    def debug(self) -> bool:
        """True when the enclave's memory can be read by its host (``ATTRIBUTES.DEBUG``)."""
        return bool(int.from_bytes(self.attributes[:8], "little") & _DEBUG)

    @classmethod
    def parse(cls, data: bytes, where: str = "enclave_report") -> EnclaveReport:
        """Parse exactly 384 bytes.

        :raises EvidenceError: for another length.
        """
        if len(data) != ENCLAVE_REPORT_BYTES:
            raise EvidenceError(f"{len(data)} bytes, not {ENCLAVE_REPORT_BYTES}", field=where)
        (
            cpu_svn,
            misc_select,
            attributes,
            mr_enclave,
            mr_signer,
            isv_prod_id,
            isv_svn,
            report_data,
        ) = _REPORT.unpack(data)
        return cls(
            raw=data,
            cpu_svn=cpu_svn,
            misc_select=misc_select,
            attributes=attributes,
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            report_data=report_data,
        )
