"""Reads Intel collateral in the forms of other tools, and converts it to one form.

That form is ``QuoteCollateralV3`` of ``dcap-qvl``: nine texts, chains in PEM, lists and signatures
in hex. The documents of other tools differ in this:

* ``tcb_info`` and ``qe_identity`` may be the whole answers of Intel's service,
  ``{"tcbInfo": {...}, "signature": "..."}``, with the signature inside;
* revocation lists may be PEM, base64, or lists of numbers, and signatures base64 or numbers;
* an issuer chain may have the root first; it is put in order, the signer first.

What Intel signed is copied byte by byte, because the signature covers the bytes.
"""

from __future__ import annotations

import re
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.encodings import json_bytes
from attestation.endorsements.chains import split_certificates
from attestation.errors import UNREADABLE, EvidenceError

__all__ = ["read_collateral", "split_signed"]

_CHAINS: Final = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_LISTS: Final = ("root_ca_crl", "pck_crl")
_SIGNED: Final = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}
_BYTES_OF_TEXT: Final = re.compile(r"(?:[0-9a-f]{2})+|(?:[0-9A-F]{2})+")


def read_collateral(document: dict[str, Any]) -> dict[str, str]:
    """Return the nine texts of a document.

    :raises EvidenceError: naming the key that is missing or malformed.
    """
    found = {key: _ordered(_text(document, key), key) for key in _CHAINS}
    for key, name in _SIGNED.items():
        text = _text(document, key)
        signature = document.get(f"{key}_signature")
        if not signature and (parts := split_signed(text.encode(), name)) is not None:
            text, signature = parts
        found[key] = text
        found[f"{key}_signature"] = _bytes(signature, f"{key}_signature").hex()
    return found | {key: _list(document.get(key), key).hex() for key in _LISTS}


def split_signed(body: bytes, name: str) -> tuple[str, str] | None:
    """Return the signed JSON and its signature (hex) of an answer of Intel's service.

    ``None`` when ``body`` is not of that form.
    """
    pattern = rb'\s*\{\s*"%s"\s*:\s*(\{.*\})\s*,\s*"signature"\s*:\s*"([0-9A-Fa-f]+)"\s*\}\s*'
    found = re.fullmatch(pattern % name.encode(), body, re.DOTALL)
    if found is None:
        return None
    try:
        return found[1].decode("utf-8"), found[2].decode("ascii").lower()
    except UnicodeDecodeError:
        return None


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise EvidenceError("is missing, or is not text", field=f"collateral.{key}")
    return value


def _ordered(text: str, key: str) -> str:
    """Return a chain with each certificate before its issuer; unchanged if it is in that order.

    Only names are compared: verifiers check the signatures of the chain.
    """
    where = f"collateral.{key}"
    found = split_certificates(text.encode(), where)
    issuers = {item.issuer for item in found if not item.self_issued}
    at = next((item for item in found if item.subject not in issuers), found[0])
    if key != _CHAINS[0] and at.authority:
        raise EvidenceError(
            f"has no signer: it starts with {at.name}, which is an authority; the certificate of "
            "the signer comes first, its root second",
            field=where,
        )
    path = [at]
    while above := [item for item in found if item.subject == at.issuer and item not in path]:
        at = above[0]
        path.append(at)
    path += [item for item in found if item not in path]
    if path == list(found):
        return text
    return "".join(item.parsed.public_bytes(Encoding.PEM).decode("ascii") for item in path)


def _bytes(value: object, key: str) -> bytes:
    where = f"collateral.{key}"
    if data := json_bytes(value, where):
        return data
    raise EvidenceError("is empty", field=where)


def _list(value: object, key: str) -> bytes:
    where = f"collateral.{key}"
    if isinstance(value, str) and "-----BEGIN X509 CRL" in value:
        try:
            return x509.load_pem_x509_crl(value.encode()).public_bytes(Encoding.DER)
        except UNREADABLE as error:
            raise EvidenceError("is no revocation list", field=where) from error
    data = _bytes(value, key)
    # The service of Intel's SDK, version 3.0, has hex in place of the list itself.
    text = data[:-1] if data.endswith(b"\0") else data
    if not data.startswith(b"0\x82") and _BYTES_OF_TEXT.fullmatch(text.decode("latin-1")):
        return bytes.fromhex(text.decode("latin-1"))
    return data
