"""Where the value of a decoded field comes from, if the evidence is genuine.

The same origins as those of the claims that verifiers make of these fields
(:meth:`attestation.evidence.Claims.origin_of`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from attestation.decoded.fields import Field
from attestation.evidence import Origin

__all__ = ["with_origins"]

_COMPONENT: Final = re.compile(r"component [0-9]+: ")
_ORIGINS: Final[tuple[tuple[re.Pattern[str], re.Pattern[str], Origin], ...]] = tuple(
    (re.compile(section), re.compile(name), origin)
    for section, name, origin in (
        (r"TD Quote Body.*", r"MRSEAM|MRTD|RTMR[0-3]|MRSERVICETD", Origin.QUOTE),
        (r"TD Quote Body.*", r"MRCONFIGID|MROWNER|MROWNERCONFIG", Origin.HOST),
        (r"SGX Enclave Report", r"MRENCLAVE|MRSIGNER|ISVPRODID|ISVSVN", Origin.QUOTE),
        (r"ATTESTATION_REPORT", r"MEASUREMENT|(?:ID|AUTHOR)_KEY_DIGEST|GUEST_SVN", Origin.QUOTE),
        (r"ATTESTATION_REPORT", r"HOST_DATA", Origin.HOST),
        (r"PCR \(.*\)", r"[0-9]+", Origin.QUOTE),
        (r"MEASUREMENTS", r"block [0-9]+", Origin.QUOTE),
        (r"TCG_PCR(?:_EVENT2|ClientPCREvent) [0-9]+", r"digests?\..*", Origin.LOG),
        (r"sample statement \(insecure\)", r".*", Origin.SELF),
    )
)


def with_origins(fields: Iterable[Field]) -> Iterator[Field]:
    """Yield ``fields``, with the origin of those that become claims.

    The text of a log's event has no origin: the digest in the register does not prove it.
    """
    for field in fields:
        section = _COMPONENT.sub("", field.section, count=1)
        found = next(
            (
                origin
                for sections, names, origin in _ORIGINS
                if sections.fullmatch(section) and names.fullmatch(field.name)
            ),
            None,
        )
        yield replace(field, origin=found) if found is not None else field
