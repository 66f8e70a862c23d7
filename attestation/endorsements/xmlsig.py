"""XML documents that one enveloped signature covers as a whole (W3C XML Signature, 2nd edition).

The only module that imports ``lxml`` and ``signxml``, which the extra ``nvidia`` installs.

A document is parsed without DTD, entities, processing instructions, comments and network, in
UTF-8, and is at most :data:`MAX_XML_BYTES` long. One shape of signature is accepted, the one that
NVIDIA's reference manifests have: a single ``Signature``, a child of the root, with one reference
to the whole document (``URI=""``), the transforms *enveloped-signature* and *Canonical XML 1.1*,
ECDSA with SHA-384, and its certificates in ``X509Data``. What callers read is parsed anew from the
canonical bytes that the signature covers, so that nothing outside of them can be read by mistake.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from lxml import etree
from signxml import DigestAlgorithm, SignatureConfiguration, SignatureMethod, XMLVerifier
from signxml.exceptions import SignXMLException

from attestation.errors import EvidenceError, SignatureError

__all__ = [
    "MAX_XML_BYTES",
    "Element",
    "SignedDocument",
    "parse_certificates",
    "parse_unverified",
    "verify_document",
]

MAX_XML_BYTES: Final = 64 * 1024
"""NVIDIA's documents have 20 to 26 KiB."""

_DSIG: Final = "{http://www.w3.org/2000/09/xmldsig#}"
_C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
_ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_MAX_CERTIFICATES: Final = 8
_MAX_ELEMENTS, _MAX_ATTRIBUTES, _MAX_NAMESPACES = 1024, 80, 16
"""The cost of canonicalization grows with the product of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element without its text. Names are ``{namespace}local``."""

    tag: str
    attributes: Mapping[str, str]
    children: tuple[Element, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedDocument:
    """``covered`` are the canonical bytes that the signature covers, ``root`` is parsed of them."""

    covered: bytes
    root: Element


def parse_unverified(data: bytes, field: str) -> Element:
    """Return the root of a document, for display only.

    :raises EvidenceError: when it is malformed, too large, or not of the shape above.
    """
    root = _parse(data, field)
    _signature(root, field)
    return _plain(root)


def parse_certificates(data: bytes, field: str) -> tuple[bytes, ...]:
    """Return the certificates (DER) in the signature's ``X509Data``, in their order.

    :raises EvidenceError: as :func:`parse_unverified`.
    """
    _, key_info = _signature(_parse(data, field), field)
    (x509_data,) = _children(key_info, ("X509Data",), field)
    found = [item for item in x509_data if item.tag == f"{_DSIG}X509Certificate"]
    if len(found) != len(x509_data) or not 0 < len(found) <= _MAX_CERTIFICATES:
        raise EvidenceError(f"must be 1 to {_MAX_CERTIFICATES} certificates", field=field)
    try:
        return tuple(
            base64.b64decode("".join((item.text or "").split()), validate=True) for item in found
        )
    except (binascii.Error, ValueError):
        raise EvidenceError("a certificate is not base64", field=field) from None


def verify_document(
    data: bytes, signer: x509.Certificate, *, now: datetime, field: str, step: str
) -> SignedDocument:
    """Verify the signature by ``signer``, which the caller has verified, and return the document.

    ``now`` must lie in the signer's validity.

    :raises EvidenceError: as :func:`parse_unverified`.
    :raises SignatureError: when ``signer`` did not sign exactly this, or is not valid at ``now``.
    """
    _signature(_parse(data, field), field)
    config = SignatureConfiguration(
        location="./",
        expect_references=1,
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
        verification_time=now,
    )
    try:
        result = XMLVerifier().verify(
            data, x509_cert=signer, parser=_parser(), expect_config=config
        )
    except InvalidSignature:
        raise SignatureError("the signer did not sign this document", step=step) from None
    except (
        SignXMLException,
        etree.LxmlError,
        ValueError,
        TypeError,
        KeyError,
        AssertionError,
    ) as error:
        raise EvidenceError("the signature is malformed", field=field) from error
    covered: bytes = result.signed_data
    root = _parse(covered, field)
    if any(True for _ in root.iter(f"{_DSIG}Signature")):
        raise EvidenceError("what is signed has a signature inside", field=field)
    return SignedDocument(covered=covered, root=_plain(root))


def _parser() -> Any:
    return etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        recover=False,
    )


def _parse(data: bytes, field: str) -> Any:
    if len(data) > MAX_XML_BYTES:
        raise EvidenceError(f"{len(data)} bytes, at most {MAX_XML_BYTES} are read", field=field)
    if b"<!" in data or b"<?" in data.removeprefix(b"<?xml "):
        raise EvidenceError(
            "has a DTD, a comment or a processing instruction, which are refused", field=field
        )
    try:
        root = etree.fromstring(data, _parser())
    except (etree.LxmlError, ValueError):
        raise EvidenceError("is not a well-formed XML document in UTF-8", field=field) from None
    for number, item in enumerate(root.iter(), start=1):
        if (
            number > _MAX_ELEMENTS
            or len(item.attrib) > _MAX_ATTRIBUTES
            or len(item.nsmap) > _MAX_NAMESPACES
        ):
            raise EvidenceError("has too many elements, attributes or namespaces", field=field)
    return root


def _signature(root: Any, field: str) -> tuple[Any, Any]:
    """Check the shape of the signature; return its ``SignedInfo`` and ``KeyInfo``."""
    found = list(root.iter(f"{_DSIG}Signature"))
    if len(found) != 1 or found[0].getparent() is not root:
        raise EvidenceError(
            f"must have one Signature, a child of its root; {len(found)} found", field=field
        )
    info, _, key_info = _children(found[0], ("SignedInfo", "SignatureValue", "KeyInfo"), field)
    method, _, reference = _children(
        info, ("CanonicalizationMethod", "SignatureMethod", "Reference"), field
    )
    transforms, _, _ = _children(reference, ("Transforms", "DigestMethod", "DigestValue"), field)
    steps = _children(transforms, ("Transform", "Transform"), field)
    if dict(reference.attrib) != {"URI": ""}:
        raise EvidenceError("the signature must refer to the whole document", field=field)
    if [dict(item.attrib) for item in (method, *steps)] != [
        {"Algorithm": name} for name in (_C14N, _ENVELOPED, _C14N)
    ] or any(len(item) for item in (method, *steps)):
        raise EvidenceError("has other transforms than enveloped-signature and C14N", field=field)
    return info, key_info


def _children(parent: Any, names: Iterable[str], field: str) -> list[Any]:
    children = list(parent)
    if [item.tag for item in children] != [f"{_DSIG}{name}" for name in names]:
        raise EvidenceError(f"{parent.tag} must have exactly {', '.join(names)}", field=field)
    return children


def _plain(item: Any) -> Element:
    return Element(
        tag=str(item.tag),
        attributes=MappingProxyType({str(key): str(value) for key, value in item.attrib.items()}),
        children=tuple(_plain(child) for child in item),
    )
