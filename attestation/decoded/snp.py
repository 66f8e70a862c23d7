"""Fields of an AMD SEV-SNP attestation report.

Names: AMD publication 56860, SEV Secure Nested Paging Firmware ABI, table
``ATTESTATION_REPORT Structure``; guest policy and TCB version from the same document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from attestation.decoded.fields import Field, Layout, integer, read_layout
from attestation.errors import EvidenceError
from attestation.quotes.snp import PLATFORM_BITS, POLICY_BITS, REPORT_BYTES, TCB, TCB_TURIN

__all__ = ["decode_report"]

_SECTION: Final = "ATTESTATION_REPORT"
_REPORT: Final[Layout] = (
    ("#VERSION", 0x00, 4),
    ("#GUEST_SVN", 0x04, 4),
    ("POLICY", 0x08, 8),
    ("FAMILY_ID", 0x10, 16),
    ("IMAGE_ID", 0x20, 16),
    ("#VMPL", 0x30, 4),
    ("#SIGNATURE_ALGO", 0x34, 4),
    ("CURRENT_TCB", 0x38, 8),
    ("PLATFORM_INFO", 0x40, 8),
    ("KEY_INFO", 0x48, 4),
    ("REPORT_DATA", 0x50, 64),
    ("MEASUREMENT", 0x90, 48),
    ("HOST_DATA", 0xC0, 32),
    ("ID_KEY_DIGEST", 0xE0, 48),
    ("AUTHOR_KEY_DIGEST", 0x110, 48),
    ("REPORT_ID", 0x140, 32),
    ("REPORT_ID_MA", 0x160, 32),
    ("REPORTED_TCB", 0x180, 8),
    ("CPUID_FAM_ID", 0x188, 1),
    ("CPUID_MOD_ID", 0x189, 1),
    ("CPUID_STEP", 0x18A, 1),
    ("CHIP_ID", 0x1A0, 64),
    ("COMMITTED_TCB", 0x1E0, 8),
    ("#CURRENT_BUILD", 0x1E8, 1),
    ("#CURRENT_MINOR", 0x1E9, 1),
    ("#CURRENT_MAJOR", 0x1EA, 1),
    ("#COMMITTED_BUILD", 0x1EC, 1),
    ("#COMMITTED_MINOR", 0x1ED, 1),
    ("#COMMITTED_MAJOR", 0x1EE, 1),
    ("LAUNCH_TCB", 0x1F0, 8),
    ("SIGNATURE R (little-endian)", 0x2A0, 72),
    ("SIGNATURE S (little-endian)", 0x2E8, 72),
)
_MITIGATIONS: Final[Layout] = (
    ("LAUNCH_MIT_VECTOR", 0x1F8, 8),
    ("CURRENT_MIT_VECTOR", 0x200, 8),
)
_MITIGATION_VERSION: Final = 5
_SIGNERS: Final = {0: "VCEK", 1: "VLEK", 7: "none"}
_FAMILY_TURIN: Final = 0x1A
_TCBS: Final = (
    ("CURRENT_TCB", 0x38),
    ("REPORTED_TCB", 0x180),
    ("COMMITTED_TCB", 0x1E0),
    ("LAUNCH_TCB", 0x1F0),
)


def decode_report(data: bytes) -> Iterator[Field]:
    """Yield every field of a report of 1184 bytes.

    :raises EvidenceError: for another size.
    """
    if len(data) != REPORT_BYTES:
        raise EvidenceError(f"{len(data)} bytes, a report has {REPORT_BYTES}", field=_SECTION)
    yield from read_layout(_SECTION, _REPORT, data)
    if integer(data[:4]) >= _MITIGATION_VERSION:
        yield from read_layout(_SECTION, _MITIGATIONS, data)
        for name, offset, size in _MITIGATIONS:
            yield _set(name, data[offset : offset + size], {})
    policy, platform, info = data[0x08:0x10], data[0x40:0x48], integer(data[0x48:0x4C])
    yield Field(section="POLICY", name="ABI_MAJOR.ABI_MINOR", value=f"{policy[1]}.{policy[0]}")
    yield _set("POLICY", policy, POLICY_BITS)
    yield _set("PLATFORM_INFO", platform, PLATFORM_BITS)
    signer = _SIGNERS.get(info >> 2 & 7, f"reserved ({info >> 2 & 7})")
    for name, value in (
        ("AUTHOR_KEY_EN", str(info & 1)),
        ("MASK_CHIP_KEY", str(info >> 1 & 1)),
        ("SIGNING_KEY", signer),
    ):
        yield Field(section="KEY_INFO", name=name, value=value)
    turin = integer(data[:4]) >= 3 and data[0x188] == _FAMILY_TURIN
    for section, offset in _TCBS:
        for index, name in (TCB_TURIN if turin else TCB).values():
            yield Field(section=section, name=name, value=str(data[offset + index]))


def _set(section: str, data: bytes, slots: Mapping[str, tuple[int, str]]) -> Field:
    bits, names = integer(data), dict(slots.values())
    first = 16 if section == "POLICY" else 0
    shown = [
        names.get(bit, f"bit {bit}")
        for bit in range(first, 64)
        if bits >> bit & 1 and (section != "POLICY" or bit != 17)
    ]
    return Field(section=section, name="set", value=", ".join(shown) or "none")
