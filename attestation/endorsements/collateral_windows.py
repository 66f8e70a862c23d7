"""Reads the validity window of a file of collateral from its content, by its kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509

from attestation.encodings import sniffed_object
from attestation.endorsements.chains import load_crl
from attestation.endorsements.collateral_forms import read_collateral
from attestation.endorsements.nvidia_rim import is_rim, read_label
from attestation.endorsements.ocsp import OcspAnswer, is_ocsp
from attestation.endorsements.offline import readable_certificates
from attestation.errors import UNREADABLE

__all__ = ["WINDOWS", "Window"]

Window = tuple[str, datetime, datetime]
"""A title, and the start and the end of the validity."""


def _intel_window(data: bytes) -> Window | None:
    document = sniffed_object(data)
    if document is None or "tcb_info" not in document:
        return None
    document = read_collateral(document)
    try:
        tcb, identity = json.loads(document["tcb_info"]), json.loads(document["qe_identity"])
        spans = [_stated(tcb), _stated(identity)]
        for name in ("root_ca_crl", "pck_crl"):
            window = _crl_window(bytes.fromhex(document[name]))
            if window is None:
                return None
            spans.append(window[1:])
        title = f"Intel collateral for FMSPC {tcb['fmspc']} ({tcb.get('id', 'SGX')})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return title, max(span[0] for span in spans), min(span[1] for span in spans)


def _stated(document: Mapping[str, Any]) -> tuple[datetime, datetime]:
    issued = datetime.fromisoformat(document["issueDate"])
    following = datetime.fromisoformat(document["nextUpdate"])
    return issued.astimezone(UTC), following.astimezone(UTC)


def _certificate_window(data: bytes) -> Window | None:
    """Return names and window of the certificates that can be read; ``None`` without any."""
    try:
        found = readable_certificates(data)
        return (
            ", ".join(_common_name(item.subject) for item in found),
            max(item.not_valid_before_utc for item in found),
            min(item.not_valid_after_utc for item in found),
        )
    except UNREADABLE:
        return None


def _crl_window(data: bytes) -> Window | None:
    try:
        crl = load_crl(data)
        name = f"revocation list of {_common_name(crl.issuer)}"
        start, end = crl.last_update_utc, crl.next_update_utc
    except UNREADABLE:
        return None
    return None if end is None else (name, start, end)


def _rim_window(data: bytes) -> Window | None:
    if not is_rim(data):
        return None
    label = read_label(data)
    return (
        f"NVIDIA RIM of {label.product} {label.version}",
        max(item.start for item in label.chain),
        min(item.end for item in label.chain),
    )


def _ocsp_window(data: bytes) -> Window | None:
    if not is_ocsp(data):
        return None
    found = OcspAnswer.parse(data)
    serials = ", ".join(f"{item.serial:x}" for item in found)
    return (
        f"OCSP answer for serial {serials}",
        max(item.start for item in found),
        min(item.end for item in found),
    )


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


WINDOWS: Final[dict[str, Callable[[bytes], Window | None]]] = {
    "intel-collateral": _intel_window,
    "certificates": _certificate_window,
    "crl": _crl_window,
    "nvidia-rim": _rim_window,
    "ocsp": _ocsp_window,
}
"""By kind: returns ``None`` for a file of another kind, raises for a malformed one of its own."""
