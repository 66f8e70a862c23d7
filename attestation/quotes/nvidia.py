"""The attestation report of an NVIDIA GPU: an SPDM exchange of measurements.

::

    request   GET_MEASUREMENTS   (DSP0274 1.1, section 10.11.1), 37 bytes with the nonce
    response  MEASUREMENTS       blocks of DMTF measurements, nonce, opaque data, signature

The signature (ECDSA P-384, r | s) covers request and response up to itself. The opaque data
are u16 type, u16 length, value, little-endian; the types are those of NVIDIA's verifier
(https://github.com/NVIDIA/nvtrust).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from attestation.errors import EvidenceError
from attestation.quotes.cursor import Cursor

__all__ = ["MAX_NVIDIA_BYTES", "NvidiaReport"]

MAX_NVIDIA_BYTES: Final = 64 * 1024
_REQUEST: Final = bytes.fromhex("11e0")
_RESPONSE: Final = bytes.fromhex("1160")
_SIGNATURE_BYTES: Final = 96
_NONCE_BYTES: Final = 32
_MAX_DIGEST_BYTES: Final = 64
_DMTF: Final = 1
_HEX: Final = re.compile(rb"\s*(?:[0-9A-Fa-f]{2})+\s*")
_DRIVER, _VBIOS, _FWID, _PROTECTED_PCIE = 3, 6, 20, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaReport:
    """A parsed report. Nothing is verified yet.

    ``nonce``         what the relying party asked with (32 bytes)
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
    def driver(self) -> str:
        """The driver version, such as ``550.90.07``."""
        return self.opaque.get(_DRIVER, b"").rstrip(b"\0").decode("ascii", "replace")

    @property
    def vbios(self) -> str:
        """The VBIOS version as NVIDIA's tools write it, such as ``96.00.9F.00.01``."""
        raw = self.opaque.get(_VBIOS, b"")[:5]
        return ".".join(f"{byte:02X}" for byte in (*raw[3::-1], *raw[4:]))

    @property
    def firmware_id(self) -> bytes:
        """The digest of the firmware that holds the signing key."""
        return self.opaque.get(_FWID, b"")

    @classmethod
    def parse(cls, data: bytes) -> NvidiaReport:
        """Parse a report of at most :data:`MAX_NVIDIA_BYTES`, raw or in hex.

        Zeros may follow; Confidential Containers' agent sends the rest of a buffer along.

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


def _measurements(record: bytes, count: int) -> dict[int, bytes]:
    read = Cursor(record, "nvidia.record", limit=MAX_NVIDIA_BYTES, little=True)
    found: dict[int, bytes] = {}
    for number in range(count):
        at = read.offset
        index = read.integer(1, f"block[{number}].index")
        if read.integer(1, f"block[{number}].specification") != _DMTF:
            raise read.fail("not a DMTF measurement", f"block[{number}]", offset=at)
        if index in found:
            raise read.fail(f"measurement {index} stands twice", f"block[{number}]", offset=at)
        size = read.integer(2, f"block[{number}].size")
        read.take(1, f"block[{number}].type")
        value = read.sized(f"block[{number}].value", limit=_MAX_DIGEST_BYTES)
        if size != len(value) + 3:
            raise read.fail("its two sizes differ", f"block[{number}]", offset=at)
        found[index] = value
    read.finish()
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    read = Cursor(data, "nvidia.opaque", limit=MAX_NVIDIA_BYTES, little=True)
    found: dict[int, bytes] = {}
    while read.remaining:
        at = read.offset
        kind = read.integer(2, "type")
        if kind in found:
            raise EvidenceError(f"type {kind} stands twice", field="nvidia.opaque", offset=at)
        found[kind] = read.sized(f"value {kind}", limit=MAX_NVIDIA_BYTES)
    return found
