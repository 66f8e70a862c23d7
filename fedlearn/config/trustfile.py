"""The ``[trust]`` table of ``server.toml`` and ``site.toml``: the anchors for genuine evidence.

The roots of Intel and AMD are built in. A policy decides which genuine evidence it affirms.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attestation.config import each, file_path, hexadecimal, option, seq
from attestation.endorsements.collateral import describe
from attestation.endorsements.intel import parse_collateral
from attestation.endorsements.nvidia_rim import is_rim
from attestation.endorsements.ocsp import is_ocsp
from attestation.endorsements.offline import unread_pieces
from attestation.errors import AttestationError, EvidenceError
from attestation.tpm.endorsement import unreadable_certificates
from attestation.trust import TrustAnchors
from fedlearn.config import file_bytes

__all__ = ["Trust"]

_MAX_ITEM_BYTES: Final = 4 * 1024 * 1024
_NO_COLLATERAL: Final = (
    "is not Intel collateral, a reference manifest or an OCSP answer; certificates and revocation "
    "lists go to trust.endorsements"
)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Anchors for verifying the other side, besides the roots that are built in.

    ``collateral``            files: Intel's documents, NVIDIA's RIMs and OCSP answers
    ``endorsements``          files: certificates and revocation lists
    ``tpm_ek_roots``          files: roots of TPM vendors, one or many certificates each
    ``insecure_sample_keys``  SHA-256 of the SPKI of development keys
    ``tpm_aks``               SHA-256 of the SPKI of attestation keys that are known
    ``tpm_ek_of``             by the digest of a known attestation key, that of the SPKI of its
                              TPM's endorsement key, which then is the hardware's identity
    ``tpm_boot_values``       values at which a boot chain leaves PCR 14, where not at zero
    ``container_servers``     digests of events that measure a CCNP or CIMA server, besides
                              the policy's references for ``container.server``
    """

    collateral: tuple[Path, ...] = option(seq(file_path(), most=64), default=())
    endorsements: tuple[Path, ...] = option(seq(file_path(), most=64), default=())
    tpm_ek_roots: tuple[Path, ...] = option(seq(file_path(), most=64), default=())
    tpm_aks: tuple[bytes, ...] = option(seq(hexadecimal(32), most=10_000), default=())
    tpm_ek_of: Mapping[str, bytes] = option(
        each(hexadecimal(32), key=_DIGEST, most=10_000), factory=lambda: MappingProxyType({})
    )
    tpm_boot_values: tuple[bytes, ...] = option(seq(hexadecimal(32, 48, 64), most=1000), default=())
    container_servers: tuple[bytes, ...] = option(seq(hexadecimal(48), most=1000), default=())
    insecure_sample_keys: tuple[bytes, ...] = option(seq(hexadecimal(32), most=10_000), default=())

    def anchors(self) -> TrustAnchors:
        """Read the files that are named and return the anchors.

        A certificate in them that cannot be read is left out, and a warning that names its file
        is logged; the others are used.

        :raises ConfigError: naming a file that cannot be read.
        """
        for text in self.unread():
            logging.getLogger(__name__).warning("%s", text)
        return TrustAnchors(
            sample_keys=frozenset(self.insecure_sample_keys),
            tpm_aks=frozenset(self.tpm_aks) | frozenset(map(bytes.fromhex, self.tpm_ek_of)),
            tpm_ek_of={bytes.fromhex(ak): ek for ak, ek in self.tpm_ek_of.items()},
            tpm_boot_values=frozenset(self.tpm_boot_values),
            container_servers=frozenset(self.container_servers),
            tpm_ek_roots=_read(self.tpm_ek_roots, "a TPM vendor's root"),
            collateral=_read(self.collateral, "the collateral"),
            endorsements=_read(self.endorsements, "the endorsement"),
        )

    def unread(self) -> Iterator[str]:
        """Yield a sentence for each item in the named files that cannot be used.

        :raises ConfigError: naming a file that cannot be read.
        """
        for path in self.collateral:
            data = _bytes(path, "the collateral")
            if is_rim(data) or is_ocsp(data):
                try:
                    describe(data, path=str(path))
                except AttestationError as error:
                    hint = f" ({error.hint})" if error.hint else ""
                    text = str(error).removeprefix(f"{path}: ")
                    yield f"trust.collateral: {path}: {text}{hint}"
                continue
            try:
                problem = "" if parse_collateral(data) else _NO_COLLATERAL
            except EvidenceError as error:
                problem = str(error)
            if problem:
                yield f"trust.collateral: {path}: {problem}"
        for path in self.tpm_ek_roots:
            for problem in unreadable_certificates(_bytes(path, "a TPM vendor's root")):
                yield f"trust.tpm_ek_roots: {path}: {problem}"
        for path in self.endorsements:
            for problem in unread_pieces(_bytes(path, "the endorsement")):
                yield f"trust.endorsements: {path}: {problem}"


def _bytes(path: Path, what: str) -> bytes:
    return file_bytes(path, limit=_MAX_ITEM_BYTES, what=what)


def _read(paths: tuple[Path, ...], what: str) -> tuple[bytes, ...]:
    return tuple(_bytes(path, what) for path in paths)
