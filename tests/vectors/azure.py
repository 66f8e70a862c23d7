"""An Azure confidential VM on our own chip: HCL report, runtime data, vTPM quote."""

from __future__ import annotations

import base64
import hashlib
import json
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.vectors import keys
from tests.vectors.amd import Amd
from tests.vectors.intel import Intel

PCRS = tuple(keys.stream(f"pcr {number}", 32) for number in range(24))


def evidence(
    extra: bytes,
    *,
    amd: Amd | None = None,
    intel: Intel | None = None,
    ak: str = "azure ak",
    policy: int = 1 << 17 | 1 << 16,
    vmpl: int = 0,
    attributes: int = 1 << 28,
    user_data: bytes = b"",
) -> bytes:
    """Return the JSON evidence whose quote has ``extra`` as its ``extraData``.

    With ``user_data`` (64 bytes) it is of version 2.
    """
    document: dict[str, object] = {"version": 2 if user_data else 1}
    key = keys.rsa_key("azure ak").public_key()
    report_data = hashlib.sha256(_runtime(key, user_data)).digest() + bytes(32)
    if intel is not None:
        quote = intel.quote(report_data=report_data, attributes=attributes)
        document["td_quote"] = base64.b64encode(quote).decode()
    else:
        document["vcek"] = base64.b64encode((amd or Amd()).leaf()).decode()
    hcl = hcl_report(key, amd=amd, intel=intel, policy=policy, vmpl=vmpl, user_data=user_data)
    message = _attest(extra)
    signer = keys.rsa_key(ak)
    signature = signer.sign(message, padding.PKCS1v15(), hashes.SHA256())
    document["hcl_report"] = base64.urlsafe_b64encode(hcl).decode().rstrip("=")
    document["tpm_quote"] = {
        "message": message.hex(),
        "signature": signature.hex(),
        "pcrs": [value.hex() for value in PCRS],
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def hcl_report(
    key: rsa.RSAPublicKey,
    *,
    amd: Amd | None = None,
    intel: Intel | None = None,
    policy: int = 1 << 17 | 1 << 16,
    vmpl: int = 0,
    user_data: bytes = b"",
) -> bytes:
    """Return the paravisor's report over the attestation key ``key``."""
    runtime = _runtime(key, user_data)
    if intel is not None:
        hardware, kind = bytes(1184), 4
    else:
        report_data = hashlib.sha256(runtime).digest() + bytes(32)
        hardware = (amd or Amd()).report(report_data=report_data, policy=policy, vmpl=vmpl)
        kind = 2
    size = 20 + len(runtime)
    head = struct.pack("<4sIII", b"HCLA", 1, 32 + 1184 + size, 2) + bytes(16) + hardware
    return head + struct.pack("<IIIII", size, 1, kind, 1, len(runtime)) + runtime + bytes(40)


def _runtime(key: rsa.RSAPublicKey, user_data: bytes = b"") -> bytes:
    modulus = key.public_numbers().n.to_bytes(256, "big")
    more = {"user-data": user_data.hex().upper()} if user_data else {}
    return json.dumps(
        {
            "keys": [
                {
                    "kid": "HCLAkPub",
                    "key_ops": ["sign"],
                    "kty": "RSA",
                    "e": "AQAB",
                    "n": base64.urlsafe_b64encode(modulus).decode().rstrip("="),
                }
            ],
            "vm-configuration": {"secure-boot": True, "vmUniqueId": "test"},
            **more,
        },
        separators=(",", ":"),
    ).encode()


def _attest(extra: bytes) -> bytes:
    signer = struct.pack(">HH", 34, 0x000B) + keys.stream("qualified signer", 32)
    clock = struct.pack(">QIIBQ", 3_512_218, 2, 0, 1, 0x2020031200120003)
    selection = struct.pack(">IHB", 1, 0x000B, 3) + b"\xff\xff\xff"
    digest = hashlib.sha256(b"".join(PCRS)).digest()
    head = struct.pack(">IH", 0xFF544347, 0x8018) + signer
    return (
        head
        + struct.pack(">H", len(extra))
        + extra
        + clock
        + selection
        + struct.pack(">H", 32)
        + digest
    )
