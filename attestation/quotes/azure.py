"""Evidence of an Azure confidential VM: a hardware report, runtime data, and a TPM quote.

The paravisor (HCL) of such a VM emulates a TPM. It writes the public key of the TPM's
attestation key into runtime data, whose digest the hardware signs::

    {"version": 1, "hcl_report": ..., "tpm_quote": {"message", "signature", "pcrs"},
     "vcek": ..., "td_quote": ..., "scope": ...}
    {"report": ..., "quote": {...}, "vcek": ...}         the same before there were versions

    HCL report   header 32 | hardware report 1184 | request 20 | runtime data (JSON) | zeros

Bytes are base64, base64url, hex, or lists of numbers, as in the documents of several writers
(Confidential Containers, ``az-snp-vtpm`` and ``az-tdx-vtpm``; ``az-cvm-vtpm``). ``vcek`` is DER in
base64 or PEM, and optional. ``td_quote`` is present for TDX. ``scope`` is an optional addition of
this project: the job whose measurements in PCR 14 are this client's. In version 2 the runtime data
have ``user-data``, which must be the quote's ``extraData`` with zeros up to 64 bytes, so that the
hardware's report is as fresh as the TPM's quote.

The parser is strict: sizes must add up, and what is not used must be zero.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from attestation.encodings import json_bytes, json_object
from attestation.errors import EvidenceError
from attestation.evidence import Tee
from attestation.quotes.cursor import Cursor
from attestation.quotes.tpm import TpmQuote
from attestation.quotes.tpm_structures import QuoteStatement

__all__ = ["MAX_AZURE_BYTES", "AzureEvidence", "HclReport", "azure_document"]

MAX_AZURE_BYTES: Final = 512 * 1024
_MAX_HCL_BYTES: Final = 64 * 1024
_HARDWARE_REPORT: Final = 1184
_MAGIC: Final = b"HCLA"
_TEES: Final = {2: Tee.SNP, 4: Tee.TDX}
_HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}
_KEYS: Final = {"version", "hcl_report", "tpm_quote", "vcek", "td_quote", "scope"}
_OLD_NAMES: Final = {"report": "hcl_report", "quote": "tpm_quote"}
_USER_DATA: Final = "user-data"
_USER_DATA_BYTES: Final = 64
_QUOTE_KEYS: Final = {"message", "signature", "pcrs"}
_AK: Final = "HCLAkPub"
_MAX_PCRS: Final = 24
_PCR_BYTES: Final = 32
_RSASSA_SHA256: Final = (0x0014, 0x000B)
_MIN_RSA_BYTES: Final = 256
_MAX_RSA_BYTES: Final = 512
_MAX_EXPONENT: Final = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """The paravisor's report. Nothing is verified.

    ``hardware_report``  an SNP report of 1184 bytes, or a TDREPORT with zeros behind it
    ``runtime_data``     JSON, the bytes that were hashed with ``hash``
    ``ak``               the vTPM's attestation key in it
    ``configuration``    the VM's configuration in the runtime data, flat
    ``user_data``        data that the guest passed to be signed; may be empty
    """

    tee: Tee
    hardware_report: bytes
    hash: str
    runtime_data: bytes
    ak: rsa.RSAPublicKey
    configuration: Mapping[str, str | bool]
    user_data: bytes

    @property
    def runtime_digest(self) -> bytes:
        """The digest that the hardware's report data starts with."""
        return hashlib.new(self.hash, self.runtime_data).digest()

    @classmethod
    def parse(cls, data: bytes) -> HclReport:
        """Parse a report of at most 64 KiB.

        :raises EvidenceError: naming field and offset.
        """
        return _parse_hcl(data)


@lru_cache(maxsize=64)
def _parse_hcl(data: bytes) -> HclReport:
    # A VM has one report for as long as it runs.
    read = Cursor(data, "hcl_report", limit=_MAX_HCL_BYTES, little=True)
    if read.take(4, "signature") != _MAGIC:
        raise read.fail("does not start with HCLA", "signature", offset=0)
    if read.integer(4, "version") not in (1, 2):
        raise read.fail("is not 1 or 2", "version", offset=4)
    report_size = read.integer(4, "report_size")
    if read.integer(4, "request_type") != 2:
        raise read.fail("is not a report (2)", "request_type", offset=12)
    if any(read.take(16, "reserved")):
        raise read.fail("must be zero", "reserved", offset=16)
    hardware = read.take(_HARDWARE_REPORT, "hardware_report")
    at = read.offset
    size, version, kind, algorithm, length = (
        read.integer(4, name)
        for name in ("data_size", "version", "report_type", "hash_type", "variable_data_size")
    )
    if version != 1 or kind not in _TEES or algorithm not in _HASHES:
        raise read.fail(
            f"version {version}, report type {kind}, hash {algorithm} are not known",
            "request",
            offset=at + 4,
        )
    if size != 20 + length or report_size != at + size:
        raise read.fail("sizes do not add up", "data_size", offset=at)
    runtime = read.take(length, "runtime_data")
    at = read.offset
    if any(read.take(read.remaining, "padding")):
        raise read.fail("must be zero", "padding", offset=at)
    document = json_object(runtime, "runtime_data")
    return HclReport(
        tee=_TEES[kind],
        hardware_report=hardware,
        hash=_HASHES[algorithm],
        runtime_data=runtime,
        ak=_attestation_key(document),
        configuration=MappingProxyType(_configuration(document)),
        user_data=_user_data(document),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """The parsed composite. Nothing is verified; ``vcek`` and ``td_quote`` may be empty."""

    hcl: HclReport
    quote: TpmQuote
    vcek: bytes
    td_quote: bytes
    version: int = 1

    @classmethod
    def parse(cls, data: bytes) -> AzureEvidence:
        """Parse a document of at most 512 KiB.

        :raises EvidenceError: naming the field.
        """
        if len(data) > MAX_AZURE_BYTES:
            raise EvidenceError(
                f"{len(data)} bytes, at most {MAX_AZURE_BYTES} are read", field="azure"
            )
        document = azure_document(data)
        if unknown := sorted(map(str, document.keys() - _KEYS)):
            raise EvidenceError(f"unknown key {unknown[0][:64]!r}", field="azure")
        version = document.get("version", 1)
        if version not in (1, 2) or isinstance(version, bool):
            raise EvidenceError("only versions 1 and 2 are known", field="azure.version")
        hcl = HclReport.parse(json_bytes(document.get("hcl_report"), "hcl_report"))
        quote = _object(document.get("tpm_quote"), "tpm_quote")
        if quote.keys() != _QUOTE_KEYS:
            raise EvidenceError(
                f"must have exactly the keys {', '.join(sorted(_QUOTE_KEYS))}", field="tpm_quote"
            )
        if version == 2 and not hcl.user_data:
            raise EvidenceError("is missing", field=f"runtime_data.{_USER_DATA}")
        scope = document.get("scope", "")
        if not isinstance(scope, str):
            raise EvidenceError("must be text", field="azure.scope")
        return cls(
            hcl=hcl,
            quote=_quote(quote, hcl.ak, scope),
            vcek=_certificate(document.get("vcek")),
            td_quote=json_bytes(document["td_quote"], "td_quote")
            if document.get("td_quote")
            else b"",
            version=version,
        )


def azure_document(data: bytes) -> dict[str, Any]:
    """Return a document of any version with the current names of its keys.

    :raises EvidenceError: when it is no JSON object.
    """
    document = json_object(data, "azure")
    if "version" in document or not document.keys() >= _OLD_NAMES.keys():
        return document
    if document.keys() & set(_OLD_NAMES.values()):
        raise EvidenceError("has a part under two names", field="azure")
    return {_OLD_NAMES.get(name, name): value for name, value in document.items()}


def _user_data(document: dict[str, Any]) -> bytes:
    value = document.get(_USER_DATA, "")
    where = f"runtime_data.{_USER_DATA}"
    if value == "":
        return b""
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        found = b""
    if len(found) != _USER_DATA_BYTES:
        raise EvidenceError(f"must be hex of {_USER_DATA_BYTES} bytes", field=where)
    return found


def _quote(quote: dict[str, Any], ak: rsa.RSAPublicKey, scope: str) -> TpmQuote:
    message = json_bytes(quote["message"], "tpm_quote.message")
    signature = json_bytes(quote["signature"], "tpm_quote.signature")
    pcrs = quote["pcrs"]
    if not isinstance(pcrs, list) or len(pcrs) > _MAX_PCRS:
        raise EvidenceError(f"must be a list of at most {_MAX_PCRS}", field="tpm_quote.pcrs")
    values = _pcr_values(pcrs)
    statement = QuoteStatement.parse(message)
    selected = [item.pcrs for item in statement.selection if item.pcrs]
    if len(selected) != 1:
        raise EvidenceError("must select PCRs of one bank", field="tpm_quote.message")
    if len(values) == _MAX_PCRS and len(selected[0]) != _MAX_PCRS:
        values = [values[index] for index in selected[0]]
    if not _MIN_RSA_BYTES <= len(signature) <= _MAX_RSA_BYTES:
        raise EvidenceError(f"{len(signature)} bytes", field="tpm_quote.signature")
    return TpmQuote.assemble(
        attest=statement,
        signature=struct.pack(">HHH", *_RSASSA_SHA256, len(signature)) + signature,
        ak=ak,
        pcr_values=b"".join(values),
        scope=scope,
    )


def _pcr_values(pcrs: list[Any]) -> list[bytes]:
    texts = [item for item in pcrs if isinstance(item, str) and len(item) == 2 * _PCR_BYTES]
    if len(texts) == len(pcrs):  # as everybody writes them; then they are read at once
        joined = json_bytes("".join(texts), "tpm_quote.pcrs")
        if len(joined) == _PCR_BYTES * len(texts):
            return [joined[at : at + _PCR_BYTES] for at in range(0, len(joined), _PCR_BYTES)]
    values = [json_bytes(item, f"tpm_quote.pcrs[{number}]") for number, item in enumerate(pcrs)]
    for number, value in enumerate(values):
        if len(value) != _PCR_BYTES:
            raise EvidenceError(f"{len(value)} bytes, not 32", field=f"tpm_quote.pcrs[{number}]")
    return values


def _attestation_key(document: dict[str, Any]) -> rsa.RSAPublicKey:
    keys = document.get("keys")
    found = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("kid") == _AK
    ]
    if len(found) != 1 or found[0].get("kty") != "RSA":
        raise EvidenceError(f"must have one RSA key {_AK}", field="runtime_data.keys")
    modulus = json_bytes(found[0].get("n"), f"runtime_data.{_AK}.n")
    exponent = json_bytes(found[0].get("e"), f"runtime_data.{_AK}.e")
    if not _MIN_RSA_BYTES <= len(modulus) <= _MAX_RSA_BYTES:
        raise EvidenceError(f"a modulus of {len(modulus)} bytes", field=f"runtime_data.{_AK}.n")
    number = int.from_bytes(exponent, "big")
    if number > _MAX_EXPONENT:
        raise EvidenceError("an exponent that is too large", field=f"runtime_data.{_AK}.e")
    try:
        return rsa.RSAPublicNumbers(number, int.from_bytes(modulus, "big")).public_key()
    except ValueError as error:
        raise EvidenceError("is not an RSA key", field=f"runtime_data.{_AK}") from error


def _configuration(document: dict[str, Any]) -> dict[str, str | bool]:
    values = document.get("vm-configuration")
    return {
        name: value
        for name, value in (values if isinstance(values, dict) else {}).items()
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 256)
    }


def _certificate(value: object) -> bytes:
    if value in (None, ""):
        return b""
    if isinstance(value, str) and value.lstrip().startswith("-----BEGIN"):
        return value.encode("utf-8", "replace")
    return json_bytes(value, "vcek")


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvidenceError("must be an object", field=where)
    return value
