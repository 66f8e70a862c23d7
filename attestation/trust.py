"""Trust anchors of verifiers, and the endorsements with which they verify.

Roots are pinned by the SHA-256 of their public key (DER SubjectPublicKeyInfo), so that another
certificate with the same name never counts, and a reissued root still does.

Sources: the Intel SGX Provisioning Certification Root CA
(https://certificates.trustedservices.intel.com), the AMD root keys that the AMD key
distribution service publishes for each product (https://kdsintf.amd.com, AMD publication 57230),
and the NVIDIA Device Identity CA and CoRIM signing Root CA (https://github.com/NVIDIA/nvtrust).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = [
    "AMD_ARK_KEYS",
    "INTEL_ROOT_KEY",
    "NVIDIA_RIM_ROOT_KEY",
    "NVIDIA_ROOT_KEY",
    "TrustAnchors",
    "key_digest",
]

AMD_ARK_KEYS: Final[dict[str, bytes]] = {
    "Milan": bytes.fromhex("9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),
    "Genoa": bytes.fromhex("429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),
    "Turin": bytes.fromhex("4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"),
}
"""SHA-256 of the SubjectPublicKeyInfo of each AMD root key, by product."""

INTEL_ROOT_KEY: Final = bytes.fromhex(
    "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
)
"""SHA-256 of the SubjectPublicKeyInfo of the Intel SGX Root CA."""

NVIDIA_ROOT_KEY: Final = bytes.fromhex(
    "a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"
)
"""SHA-256 of the SubjectPublicKeyInfo of the NVIDIA Device Identity CA."""

NVIDIA_RIM_ROOT_KEY: Final = bytes.fromhex(
    "dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3"
)
"""SHA-256 of the SubjectPublicKeyInfo of the NVIDIA CoRIM signing Root CA."""


def key_digest(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    """Return the SHA-256 (32 bytes) of the DER SubjectPublicKeyInfo of ``key``."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


_PCR_BYTES: Final = (32, 48, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustAnchors:
    """Pinned roots, enrolled keys, and the collateral to verify with.

    The default trusts the Intel, AMD and NVIDIA roots, no TPM and no development key.

    ``sample_keys``   SHA-256 of the SPKI of development keys; only for ``sample`` evidence
    ``tpm_aks``       SHA-256 of the SPKI of attestation keys that were proven at enrollment to
                      be in a TPM (credential activation), or that were pinned
    ``tpm_ek_of``     SHA-256 of the SPKI of the endorsement key of the TPM that has the
                      attestation key, by the key of ``tpm_aks``
    ``tpm_boot_values``  values of PCR 14 (of any bank but SHA-1: 32, 48 or 64 bytes) at which a
                      boot chain may hand over to software, where that is not zero (shim
                      measures its key list there)
    ``tpm_ek_roots``  files of certificates (DER, or PEM, one or many) that endorsement key
                      certificates may chain to
    ``amd_ark_keys``  SHA-256 of the SPKI of the trusted AMD root keys
    ``intel_root``    SHA-256 of the SPKI of the trusted Intel root CA
    ``nvidia_root``   SHA-256 of the SPKI of the trusted NVIDIA root CA
    ``nvidia_rim_root``  SHA-256 of the SPKI of the root CA of NVIDIA's RIM signers
    ``container_servers``  digests of events which measure a CCNP or CIMA server, or an image
                      that contains it; a container's own register counts only under one
    ``known_events``  digests of log events that reference values name; when a log does not
                      replay, the error names the first event that is not among them.
                      A policy fills in both: :meth:`~.policy.model.AppraisalPolicy.anchors_for`
    ``collateral``    Intel collateral documents, each one the JSON of a QuoteCollateralV3;
                      NVIDIA's RIMs (SWID tags in XML) and OCSP answers (DER)
    ``endorsements``  certificates and chains, DER or PEM: VCEK, VLEK, ASK, ASVK, ARK, EK,
                      and AMD certificate revocation lists
    """

    sample_keys: frozenset[bytes] = frozenset()
    tpm_aks: frozenset[bytes] = frozenset()
    tpm_ek_of: Mapping[bytes, bytes] = field(default_factory=dict, hash=False)
    tpm_boot_values: frozenset[bytes] = frozenset()
    tpm_ek_roots: tuple[bytes, ...] = ()
    amd_ark_keys: frozenset[bytes] = frozenset(AMD_ARK_KEYS.values())
    intel_root: bytes = INTEL_ROOT_KEY
    nvidia_root: bytes = NVIDIA_ROOT_KEY
    nvidia_rim_root: bytes = NVIDIA_RIM_ROOT_KEY
    container_servers: frozenset[bytes] = frozenset()
    known_events: frozenset[bytes] = frozenset()
    collateral: tuple[bytes, ...] = ()
    endorsements: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tpm_ek_of", MappingProxyType(dict(self.tpm_ek_of)))
        pins = (
            *(*self.sample_keys, *self.tpm_aks, *self.amd_ark_keys),
            *(self.intel_root, self.nvidia_root, self.nvidia_rim_root),
            *(*self.tpm_ek_of.keys(), *self.tpm_ek_of.values()),
        )
        if any(len(pin) != hashlib.sha256().digest_size for pin in pins):
            raise ValueError("a key is pinned by its SHA-256, 32 bytes")
        if any(len(value) not in _PCR_BYTES for value in self.tpm_boot_values):
            raise ValueError("a value of a register has 32, 48 or 64 bytes")
