"""The attestation report of AMD SEV-SNP, 1184 bytes.

Layout: AMD publication 56860, SEV Secure Nested Paging Firmware ABI, table
``ATTESTATION_REPORT Structure``; ``TCB_VERSION`` from the same document. The
meaning of each byte of a TCB version depends on the product. A report before version 3 does not
name the product, so :func:`tcb_versions` takes it from the caller, who reads it in the certificate.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from attestation.errors import EvidenceError
from attestation.quotes.cursor import Cursor

__all__ = [
    "PLATFORM_BITS",
    "POLICY_BITS",
    "PRODUCTS",
    "REPORT_BYTES",
    "SIGNED_BYTES",
    "TCB",
    "TCB_COMPONENTS",
    "TCB_TURIN",
    "VCEK",
    "VLEK",
    "SnpReport",
    "is_certificate_table",
    "parse_certificate_table",
    "tcb_versions",
]

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
PRODUCTS: Final = ("Milan", "Genoa", "Turin")
VCEK: Final = 0
"""``SIGNING_KEY``: the report is signed by a key of this chip."""

VLEK: Final = 1
"""``SIGNING_KEY``: the report is signed by a key of the cloud that runs this chip."""

_VERSIONS: Final = range(2, 6)
_ECDSA_P384_SHA384: Final = 1
_SCALAR_FIELD: Final = 72
_SCALAR: Final = 48


class Slot(NamedTuple):
    """A bit or a byte of a field: its number, and its name in AMD's specification."""

    number: int
    title: str


TCB: Final = {
    "bootloader": Slot(0, "BOOT_LOADER"),
    "tee": Slot(1, "TEE"),
    "snp": Slot(6, "SNP"),
    "microcode": Slot(7, "MICROCODE"),
}
TCB_TURIN: Final = {
    "fmc": Slot(0, "FMC"),
    "bootloader": Slot(1, "BOOT_LOADER"),
    "tee": Slot(2, "TEE"),
    "snp": Slot(3, "SNP"),
    "microcode": Slot(7, "MICROCODE"),
}
"""Bytes of a TCB version, by the names that policies use; ``TCB_TURIN`` are those of Turin."""

TCB_COMPONENTS: Final = tuple({**TCB, **TCB_TURIN})
POLICY_BITS: Final = {
    "smt": Slot(16, "SMT"),
    "migration": Slot(18, "MIGRATE_MA"),
    "debug": Slot(19, "DEBUG"),
    "single_socket": Slot(20, "SINGLE_SOCKET"),
    "cxl": Slot(21, "CXL_ALLOW"),
    "aes_256_xts": Slot(22, "MEM_AES_256_XTS"),
    "rapl_disabled": Slot(23, "RAPL_DIS"),
    "ciphertext_hiding": Slot(24, "CIPHERTEXT_HIDING_DRAM"),
    "page_swap_disable": Slot(25, "PAGE_SWAP_DISABLE"),
}
"""Bits of the guest policy, by the names that policies use."""

PLATFORM_BITS: Final = {
    "smt_enabled": Slot(0, "SMT_EN"),
    "tsme_enabled": Slot(1, "TSME_EN"),
    "ecc_enabled": Slot(2, "ECC_EN"),
    "rapl_disabled": Slot(3, "RAPL_DIS"),
    "ciphertext_hiding": Slot(4, "CIPHERTEXT_HIDING_DRAM_EN"),
    "alias_check": Slot(5, "ALIAS_CHECK_COMPLETE"),
    "tio_enabled": Slot(7, "TIO_EN"),
}
"""Bits of ``PLATFORM_INFO``, by the names that policies use."""

_CPUID_VERSION: Final = 3
_MITIGATION_VERSION: Final = 5
_FAMILY_19: Final = 0x19
_FAMILY_1A: Final = 0x1A
_LAYOUT: Final = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8s8x8sQQ152x")
"""The signed part, field by field as in the table; ``x`` is reserved or not used."""

_TABLE_KINDS: Final = frozenset(
    map(
        uuid.UUID,
        (
            "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
            "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
            "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK
            "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
            "92f81bc3-5811-4d3d-97ff-d19f88dc67ea",  # CRL
        ),
    )
)
_GUID_BYTES: Final = 16
_TABLE_STARTS: Final = frozenset(kind.bytes for kind in _TABLE_KINDS)
_TABLE_ENTRY: Final = struct.Struct("<16sII")
_MAX_TABLE_BYTES: Final = 64 * 1024
_MAX_TABLE_ENTRIES: Final = 16


def tcb_versions(value: bytes, product: str) -> dict[str, int]:
    """Return the security versions in one of the TCB fields, by component."""
    layout = TCB_TURIN if product == "Turin" else TCB
    return {name: value[slot.number] for name, slot in layout.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """The fields of a report, as the specification names them. Nothing is verified.

    ``policy``          guest policy; ``guest_policy`` has its bits by name
    ``*_tcb``           8 bytes each; see :func:`tcb_versions`
    ``signing_key``     :data:`VCEK` or :data:`VLEK`
    ``cpuid``           family, model, stepping; ``None`` before version 3
    ``*_mit_vector``    mitigations that the firmware verified, a bit each, at launch and now;
                        ``None`` before version 5
    ``signature``       r and s as integers
    """

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_enabled: bool
    mask_chip_key: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    launch_mit_vector: int | None
    current_mit_vector: int | None
    signature: tuple[int, int]

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers."""
        return self.raw[:SIGNED_BYTES]

    @property
    def guest_policy(self) -> Mapping[str, bool]:
        """The bits of the guest policy: ``debug``, ``migration``, ``smt``, ..."""
        return {name: bool(self.policy >> bit & 1) for name, (bit, _) in POLICY_BITS.items()}

    @property
    def platform(self) -> Mapping[str, bool]:
        """The bits of ``PLATFORM_INFO``."""
        return {
            name: bool(self.platform_info >> bit & 1) for name, (bit, _) in PLATFORM_BITS.items()
        }

    @property
    def product(self) -> str | None:
        """The product that the CPUID of the report belongs to, where there is one."""
        if self.cpuid is None:
            return None
        family, model, _ = self.cpuid
        if family == _FAMILY_1A:
            return "Turin"
        if family == _FAMILY_19:
            return "Milan" if model < 0x10 else "Genoa"
        return None

    @classmethod
    def parse(cls, data: bytes) -> SnpReport:
        """Parse exactly 1184 bytes.

        :raises EvidenceError: naming field and offset.
        """
        read = Cursor(data, "report", limit=REPORT_BYTES, little=True)
        if len(data) != REPORT_BYTES:
            raise read.fail(f"{len(data)} bytes, a report has {REPORT_BYTES}", "size")
        fields = _LAYOUT.unpack(read.take(SIGNED_BYTES, "report"))
        version, guest_svn, policy, family_id, image_id, vmpl, algorithm = fields[:7]
        current_tcb, platform_info, key_info, report_data, measurement, host_data = fields[7:13]
        id_key, author_key, report_id, report_id_ma, reported_tcb = fields[13:18]
        family, model, stepping, chip_id, committed_tcb, launch_tcb = fields[18:24]
        vectors = fields[24:] if version >= _MITIGATION_VERSION else (None, None)
        if version not in _VERSIONS:
            raise read.fail(f"{version} is not 2 to 5", "version", offset=0)
        if algorithm != _ECDSA_P384_SHA384:
            raise read.fail(
                f"{algorithm} is not ECDSA P-384 with SHA-384 (1)", "signature_algo", offset=0x34
            )
        signing_key = key_info >> 2 & 7
        if signing_key not in (VCEK, VLEK):
            raise read.fail(f"signed by no key ({signing_key})", "key_info", offset=0x48)
        signature = _scalar(read, "signature.r"), _scalar(read, "signature.s")
        at = read.offset
        if any(read.take(read.remaining, "signature.reserved")):
            raise read.fail("must be zero", "signature.reserved", offset=at)
        return cls(
            raw=data,
            version=version,
            guest_svn=guest_svn,
            policy=policy,
            family_id=family_id,
            image_id=image_id,
            vmpl=vmpl,
            current_tcb=current_tcb,
            platform_info=platform_info,
            author_key_enabled=bool(key_info & 1),
            mask_chip_key=bool(key_info & 2),
            signing_key=signing_key,
            report_data=report_data,
            measurement=measurement,
            host_data=host_data,
            id_key_digest=id_key,
            author_key_digest=author_key,
            report_id=report_id,
            report_id_ma=report_id_ma,
            reported_tcb=reported_tcb,
            cpuid=(family, model, stepping) if version >= _CPUID_VERSION else None,
            chip_id=chip_id,
            committed_tcb=committed_tcb,
            launch_tcb=launch_tcb,
            launch_mit_vector=vectors[0],
            current_mit_vector=vectors[1],
            signature=signature,
        )


def _scalar(read: Cursor, field: str) -> int:
    at = read.offset
    value = read.take(_SCALAR_FIELD, field)
    if any(value[_SCALAR:]):
        raise read.fail("does not fit P-384", field, offset=at + _SCALAR)
    return int.from_bytes(value, "little")


def is_certificate_table(data: bytes) -> bool:
    """Return whether ``data`` starts like a table of certificates."""
    return len(data) > _TABLE_ENTRY.size and data[:_GUID_BYTES] in _TABLE_STARTS


def parse_certificate_table(data: bytes) -> tuple[bytes, ...]:
    """Return the certificates that a host sent with a report.

    Format: AMD publication 56421, Guest Hypervisor Communication Block Standardization,
    ``cert_table``: entries of ``GUID 16 | u32le offset | u32le length`` up to one of zeros,
    then the certificates. The table itself is not signed. An entry of a kind that is neither a
    certificate nor a revocation list is ignored.

    :raises EvidenceError: naming field and offset.
    """
    read = Cursor(data, "cert_table", limit=_MAX_TABLE_BYTES, little=True)
    found: list[bytes] = []
    while read.remaining:
        at = read.offset
        guid, offset, length = _TABLE_ENTRY.unpack(read.take(_TABLE_ENTRY.size, "entry"))
        if not any(guid):
            return tuple(found)
        if at == _MAX_TABLE_ENTRIES * _TABLE_ENTRY.size:
            raise read.fail(f"more than {_MAX_TABLE_ENTRIES} entries", "entry", offset=at)
        if not length or offset + length > len(data):
            raise EvidenceError("points outside of the table", field="cert_table.entry", offset=at)
        if uuid.UUID(bytes=guid) in _TABLE_KINDS:
            found.append(data[offset : offset + length])
    raise read.fail("has no end", "entry")
