"""Initdata: what a confidential pod receives before it starts, and what is measured of it.

The Confidential Containers initdata specification: a TOML document with ``algorithm``,
``version`` and ``data``, carried as base64 of gzip in an annotation. The guest checks its
digest against MRCONFIGID (TDX), HOSTDATA (SNP) or extends it into PCR 8, so a verifier that
holds the digest as reference value refuses a pod that was started with another document.

The document names the client's image and the app. It does not name the job: a job names the
policy, and the policy names this document's digest.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Final

from attestation.config import dumps
from attestation.policy.model import ReferenceValue
from attestation.policy.references import initdata_references
from edge.kube.guest_policy import guest_policy
from fedlearn.errors import ConfigError

__all__ = [
    "ANNOTATION",
    "annotation_value",
    "initdata_document",
    "initdata_values",
    "opened",
]

ANNOTATION: Final = "io.katacontainers.config.hypervisor.cc_init_data"
_VERSION: Final = "0.1.0"
_MAX_BYTES: Final = 1024 * 1024
_GZIP_HEADER: Final = b"\x1f\x8b\x08" + bytes(5) + b"\x02\xff"
"""RFC 1952 without a time, name or operating system: the same bytes everywhere."""

_ATTESTATION_AGENT: Final = """\
[eventlog_config]
enable_eventlog = true
eventlog_algorithm = "sha384"
init_pcr = 17
"""


def initdata_document(*, image: str, bundle: bytes, tee: str = "") -> bytes:
    """Return the document for a client ``image`` that runs the app ``bundle`` (SHA-256).

    ``tee`` decides on the algorithm: SNP's HOSTDATA holds a SHA-256, MRCONFIGID a SHA-384.
    The same arguments give the same bytes.
    """
    return dumps(
        {
            "algorithm": "sha256" if tee == "snp" else "sha384",
            "version": _VERSION,
            "data": {
                "aa.toml": _ATTESTATION_AGENT,
                "fedlearn.toml": f'image = "{image}"\nbundle = "{bundle.hex()}"\n',
                "policy.rego": guest_policy(image),
            },
        }
    ).encode()


def initdata_values(
    *, image: str, bundle: bytes, tee: str = "", name: str = ""
) -> tuple[ReferenceValue, ...]:
    """Return the reference values for a policy that accepts only pods with this document."""
    document = initdata_document(image=image, bundle=bundle, tee=tee)
    return initdata_references(document, name=name)


def annotation_value(document: bytes) -> str:
    """Return ``document`` as the annotation carries it. The same bytes give the same text."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(document) + deflate.flush()
    trailer = struct.pack("<II", zlib.crc32(document), len(document) & 0xFFFFFFFF)
    return base64.b64encode(_GZIP_HEADER + body + trailer).decode()


def opened(value: str) -> bytes:
    """Return the document in an annotation.

    :raises ConfigError: when it is malformed, or longer than 1 MiB.
    """
    inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        document = inflate.decompress(base64.b64decode(value, validate=True), _MAX_BYTES + 1)
    except (ValueError, zlib.error) as error:
        raise ConfigError(f"is not base64 of gzip: {error}", key=ANNOTATION) from None
    if len(document) > _MAX_BYTES or not inflate.eof or inflate.unused_data:
        raise ConfigError("is too long, truncated, or followed by other data", key=ANNOTATION)
    return document
