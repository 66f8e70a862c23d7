"""Fields of reports of GPUs and NVSwitches. Names: DSP0274 1.1 (SPDM), NVIDIA's verifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attestation.decoded.fields import Field
from attestation.quotes.nvidia import NvidiaReport

__all__ = ["decode_nvidia"]

_OPAQUE: Final = {
    1: "CERT_ISSUER_NAME",
    2: "CERT_AUTHORITY_KEY_IDENTIFIER",
    3: "DRIVER_VERSION",
    4: "GPU_INFO",
    5: "SKU",
    6: "VBIOS_VERSION",
    7: "MANUFACTURER_ID",
    8: "TAMPER_DETECTION",
    9: "SMC",
    10: "VPR",
    11: "NVDEC0_STATUS",
    12: "MSRSCNT",
    13: "CPRINFO",
    14: "BOARD_ID",
    15: "CHIP_SKU",
    16: "CHIP_SKU_MOD",
    17: "PROJECT",
    18: "PROJECT_SKU",
    19: "PROJECT_SKU_MOD",
    20: "FWID",
    21: "PROTECTED_PCIE_STATUS",
    22: "SWITCH_PDI",
    23: "FLOORSWEPT_PORTS",
    24: "POSITION_ID",
    25: "LOCK_SWITCH_STATUS",
    32: "GPU_LINK_CONN",
    33: "SYS_ENABLE_STATUS",
    34: "OPAQUE_DATA_VERSION",
    35: "CHIP_INFO",
    36: "FEATURE_FLAG",
    255: "INVALID",
}
_OPAQUE_OF_SWITCH: Final = _OPAQUE | {
    22: "DEVICE_PDI",
    23: "DISABLED_PORTS",
    24: "SWITCH_POSITION_ID",
    25: "SWITCH_LOCK_STATUS",
    26: "SWITCH_GPU_PDIS",
    27: "SWITCH_PORTS",
}
_TEXTS: Final = frozenset({3, 15, 16, 17, 18, 19, 35})
_NUMBERS: Final = frozenset({24, 25, 34})
_STATUS: Final = {b"\xaa": "enabled", b"\x55": "disabled"}
_MODES: Final = ("single GPU", "several GPUs", "Protected PCIe")
_VBIOS, _STATUS_FIELDS, _COUNTS, _PDIS, _FLAGS = 6, frozenset({11, 21}), 12, frozenset({22, 26}), 36
_GPU_PDIS: Final = 26
_COUNT_BYTES: Final = 4
_PORTS_AT: Final = 64


def decode_nvidia(data: bytes) -> Iterator[Field]:
    """Yield every field.

    :raises EvidenceError: naming field and offset.
    """
    report = NvidiaReport.parse(data)
    yield Field(section="GET_MEASUREMENTS", name="Nonce", value=report.nonce.hex())
    for index, value in sorted(report.measurements.items()):
        yield Field(section="MEASUREMENTS", name=f"block {index}", value=value.hex())
    names = _OPAQUE_OF_SWITCH if report.is_switch else _OPAQUE
    for kind, value in report.opaque.items():
        shown = " ".join(filter(None, (value.hex(), _meaning(report, kind, value))))
        name = names.get(kind, f"type {kind}")
        yield Field(section="OpaqueData", name=name, value=shown)
    yield Field(section="MEASUREMENTS", name="Signature", value=report.signature.hex())


def _meaning(report: NvidiaReport, kind: int, value: bytes) -> str:
    """Return the meaning of an opaque value in words, where it has one beside its bytes."""
    if kind == _VBIOS:
        return f"({report.vbios})"
    if kind in _TEXTS:
        return f'("{report.text(kind)}")' if any(value) else ""
    if kind in _STATUS_FIELDS:
        return f"({_STATUS.get(value, 'unknown')})"
    if kind in _NUMBERS:
        return f"({int.from_bytes(value, 'little')})"
    if kind == _FLAGS:
        mode = int.from_bytes(value, "little")
        return f"({_MODES[mode]})" if mode < len(_MODES) else "(unknown)"
    if kind == _COUNTS and len(value) % _COUNT_BYTES == 0:
        counts = (value[at : at + _COUNT_BYTES] for at in range(0, len(value), _COUNT_BYTES))
        return f"({' '.join(str(int.from_bytes(item, 'little')) for item in counts)})"
    if kind in _PDIS and not (report.is_switch and kind != _GPU_PDIS):
        pdis = sorted(item.hex() for item in report.linked_pdis)
        ports = f"; ports {value[_PORTS_AT:].hex(' ')}" if kind == _GPU_PDIS else ""
        return f"({', '.join(pdis) or 'none'}{ports})"
    return ""
