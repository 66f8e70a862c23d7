"""Fields of the report of an NVIDIA GPU. Names: DSP0274 1.1 (SPDM), NVIDIA's ``nvtrust``."""

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
    255: "INVALID",
}


def decode_nvidia(data: bytes) -> Iterator[Field]:
    """Yield every field.

    :raises EvidenceError: naming field and offset.
    """
    report = NvidiaReport.parse(data)
    yield Field(section="GET_MEASUREMENTS", name="Nonce", value=report.nonce.hex())
    for index, value in sorted(report.measurements.items()):
        yield Field(section="MEASUREMENTS", name=f"block {index}", value=value.hex())
    for kind, value in report.opaque.items():
        name = _OPAQUE.get(kind, f"type {kind}")
        yield Field(section="OpaqueData", name=name, value=value.hex())
    yield Field(section="read as text", name="driver", value=report.driver)
    yield Field(section="read as text", name="VBIOS", value=report.vbios)
    yield Field(section="MEASUREMENTS", name="Signature", value=report.signature.hex())
