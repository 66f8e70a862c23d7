"""The attestation report of an NVIDIA GPU or NVSwitch: an SPDM exchange of measurements.

::

    request   GET_MEASUREMENTS   (DSP0274 1.1, section 10.11.1), 37 bytes with the nonce
    response  MEASUREMENTS       blocks of DMTF measurements, nonce, opaque data, signature

The signature (ECDSA P-384, r | s) covers request and response up to itself. The opaque data
are u16 type, u16 length, value, little-endian; the types are those of NVIDIA's verifiers
(https://github.com/NVIDIA/nvtrust, https://github.com/NVIDIA/attestation-sdk). A type may mean
something else in a report of an NVSwitch, which names neither driver nor firmware id, writes its
VBIOS version as text, and lists the GPUs that it connects.

A PDI (*per-device identifier*, 8 bytes) names a GPU or NVSwitch. In Protected PCIe mode a GPU lists
the switch at the end of each of its links, byte by byte in reverse; zeros stand for no link.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from attestation.errors import EvidenceError
from attestation.quotes.cursor import Cursor

__all__ = ["MAX_NVIDIA_BYTES", "PDI_BYTES", "NvidiaReport", "split_pdis"]

MAX_NVIDIA_BYTES: Final = 64 * 1024
_REQUEST: Final = bytes.fromhex("11e0")
_RESPONSE: Final = bytes.fromhex("1160")
_SIGNATURE_BYTES: Final = 96
_NONCE_BYTES: Final = 32
_MAX_DIGEST_BYTES: Final = 64
_DMTF: Final = 1
_HEX: Final = re.compile(rb"\s*(?:[0-9A-Fa-f]{2})+\s*")
_DRIVER, _VBIOS, _NVDEC0, _FWID, _PROTECTED_PCIE, _PDI = 3, 6, 11, 20, 21, 22
_SWITCH_GPU_PDIS: Final = 26
_OPAQUE_CHIP, _OPAQUE_FEATURES = 35, 36
_ENABLED, _DISABLED = b"\xaa", b"\x55"
_MODE_PROTECTED_PCIE: Final = 2
_BINARY_VBIOS_BYTES: Final = 8
PDI_BYTES: Final = 8
_SWITCH_GPUS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaReport:
    """A parsed report. Nothing is verified yet.

    ``nonce``         the nonce of the request (32 bytes)
    ``measurements``  by SPDM index, from 1
    ``opaque``        by the type of NVIDIA's verifier
    ``signed``        the bytes that ``signature`` (r | s, 96 bytes) covers
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def is_switch(self) -> bool:
        """Whether an NVSwitch made the report, which lists the GPUs that it connects."""
        return _SWITCH_GPU_PDIS in self.opaque

    @property
    def driver(self) -> str:
        """The driver version, such as ``550.90.07``; empty for an NVSwitch."""
        return self.text(_DRIVER)

    @property
    def vbios(self) -> str:
        """The VBIOS version as NVIDIA's tools write it, such as ``96.00.9F.00.01``."""
        raw = self.opaque.get(_VBIOS, b"")
        if len(raw) != _BINARY_VBIOS_BYTES:
            return self.text(_VBIOS)
        return ".".join(f"{byte:02X}" for byte in (*raw[3::-1], raw[4]))

    @property
    def firmware_id(self) -> bytes:
        """The digest of the firmware that holds the signing key; empty for an NVSwitch."""
        return self.opaque.get(_FWID, b"")

    @property
    def chip(self) -> str:
        """The chip (``GB100``) in reports of Blackwell; empty in others."""
        return self.text(_OPAQUE_CHIP)

    @property
    def nvdec0_disabled(self) -> bool:
        """Whether the video decoder NVDEC0 is off; its firmware is then not measured."""
        return self.opaque.get(_NVDEC0) == _DISABLED

    @property
    def protected_pcie(self) -> bool:
        """Whether a GPU is in Protected PCIe mode, in which NVSwitches can read its data."""
        mode = int.from_bytes(self.opaque.get(_OPAQUE_FEATURES, b""), "little")
        return not self.is_switch and (
            self.opaque.get(_PROTECTED_PCIE) == _ENABLED or mode == _MODE_PROTECTED_PCIE
        )

    @property
    def own_pdi(self) -> bytes:
        """The PDI of an NVSwitch; empty for a GPU, whose report does not have it."""
        return self.opaque.get(_PDI, b"") if self.is_switch else b""

    @property
    def linked_pdis(self) -> frozenset[bytes]:
        """The PDIs at the other end: of switches for a GPU, of GPUs for a switch."""
        raw = self.opaque.get(_SWITCH_GPU_PDIS if self.is_switch else _PDI, b"")
        if self.is_switch:
            found = split_pdis(raw[: PDI_BYTES * _SWITCH_GPUS])
        else:
            found = tuple(item[::-1] for item in split_pdis(raw))
        return frozenset(item for item in found if any(item))

    def text(self, kind: int) -> str:
        """Return the opaque value of a type as text."""
        return self.opaque.get(kind, b"").rstrip(b"\0").decode("ascii", "replace")

    @classmethod
    def parse(cls, data: bytes) -> NvidiaReport:
        """Parse a report of at most :data:`MAX_NVIDIA_BYTES`, raw or in hex.

        Zeros may follow: the agent of Confidential Containers sends a whole buffer.

        :raises EvidenceError: naming field and offset.
        """
        if len(data) <= 2 * MAX_NVIDIA_BYTES and _HEX.fullmatch(data):
            data = bytes.fromhex(data.decode("ascii"))
        read = Cursor(data, "nvidia", limit=MAX_NVIDIA_BYTES, little=True)
        if read.take(2, "request.code") != _REQUEST:
            raise read.fail("not a GET_MEASUREMENTS request of SPDM 1.1", "request", offset=0)
        read.take(2, "request.parameters")
        nonce = read.take(_NONCE_BYTES, "request.nonce")
        read.take(1, "request.slot")
        start = read.offset
        if read.take(2, "response.code") != _RESPONSE:
            raise read.fail("not a MEASUREMENTS response of SPDM 1.1", "response", offset=start)
        read.take(2, "response.parameters")
        count = read.integer(1, "response.blocks")
        record = read.sized("response.record", limit=MAX_NVIDIA_BYTES, prefix=3)
        measurements = _measurements(record, count)
        read.take(_NONCE_BYTES, "response.nonce")
        opaque = _opaque(read.sized("response.opaque", limit=MAX_NVIDIA_BYTES))
        _check_links(opaque)
        signed = data[: read.offset]
        signature = read.take(_SIGNATURE_BYTES, "response.signature")
        at = read.offset
        if any(read.take(read.remaining, "end")):
            raise read.fail("only zeros may follow the signature", "end", offset=at)
        return cls(
            nonce=nonce,
            measurements=MappingProxyType(measurements),
            opaque=MappingProxyType(opaque),
            signed=signed,
            signature=signature,
        )


def split_pdis(data: bytes) -> tuple[bytes, ...]:
    """Split a list of PDIs of 8 bytes.

    :raises EvidenceError: when it ends inside of one.
    """
    if len(data) % PDI_BYTES:
        raise EvidenceError(f"{len(data)} bytes are no list of PDIs", field="nvidia.opaque")
    return tuple(data[at : at + PDI_BYTES] for at in range(0, len(data), PDI_BYTES))


def _measurements(record: bytes, count: int) -> dict[int, bytes]:
    read = Cursor(record, "nvidia.record", limit=MAX_NVIDIA_BYTES, little=True)
    found: dict[int, bytes] = {}
    for number in range(count):
        at = read.offset
        index = read.integer(1, f"block[{number}].index")
        if read.integer(1, f"block[{number}].specification") != _DMTF:
            raise read.fail("not a DMTF measurement", f"block[{number}]", offset=at)
        if index in found:
            raise read.fail(f"measurement {index} occurs twice", f"block[{number}]", offset=at)
        size = read.integer(2, f"block[{number}].size")
        read.take(1, f"block[{number}].type")
        value = read.sized(f"block[{number}].value", limit=_MAX_DIGEST_BYTES)
        if size != len(value) + 3:
            raise read.fail("its two sizes differ", f"block[{number}]", offset=at)
        found[index] = value
    read.finish()
    return found


def _check_links(opaque: Mapping[int, bytes]) -> None:
    """Check the sizes of the lists of PDIs, so that reading them later cannot fail."""
    if _SWITCH_GPU_PDIS not in opaque:
        split_pdis(opaque.get(_PDI, b""))
    elif (
        len(opaque.get(_PDI, b"")) != PDI_BYTES
        or len(opaque[_SWITCH_GPU_PDIS]) < PDI_BYTES * _SWITCH_GPUS
    ):
        raise EvidenceError("an NVSwitch names its PDI and 8 of GPUs", field="nvidia.opaque")


def _opaque(data: bytes) -> dict[int, bytes]:
    read = Cursor(data, "nvidia.opaque", limit=MAX_NVIDIA_BYTES, little=True)
    found: dict[int, bytes] = {}
    while read.remaining:
        at = read.offset
        kind = read.integer(2, "type")
        if kind in found:
            raise EvidenceError(f"type {kind} occurs twice", field="nvidia.opaque", offset=at)
        found[kind] = read.sized(f"value {kind}", limit=MAX_NVIDIA_BYTES)
    return found
