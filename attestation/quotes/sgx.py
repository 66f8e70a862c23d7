"""An SGX enclave report, 384 bytes (Intel SDM volume 3D, table 38-21, ``REPORT``).

It is the body of an SGX quote, and the Quoting Enclave's own report inside every DCAP quote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attestation.quotes.cursor import Cursor

__all__ = ["ENCLAVE_REPORT_BYTES", "EnclaveReport"]

ENCLAVE_REPORT_BYTES: Final = 384
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
        read = Cursor(data, where, limit=ENCLAVE_REPORT_BYTES, little=True)
        cpu_svn = read.take(16, "cpu_svn")
        misc_select = read.integer(4, "misc_select")
        read.take(28, "reserved1")
        attributes = read.take(16, "attributes")
        mr_enclave = read.take(32, "mr_enclave")
        read.take(32, "reserved2")
        mr_signer = read.take(32, "mr_signer")
        read.take(96, "reserved3")
        isv_prod_id = read.integer(2, "isv_prod_id")
        isv_svn = read.integer(2, "isv_svn")
        read.take(60, "reserved4")
        report_data = read.take(64, "report_data")
        read.finish()
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
