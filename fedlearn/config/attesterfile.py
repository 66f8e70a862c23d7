# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""The ``[attester]`` table of ``server.toml`` and ``site.toml``: what makes the evidence.

::

    [attester]
    kind = "auto"                      # or one of the kinds below
    tcti = "device:/dev/tpmrm0"        # tpm: how tpm2-tools reach it
    socket = "/run/ccnp/uds/..."       # ccnp: the quote server's socket
    address = "127.0.0.1:8006"         # coco: the Attestation Agent's API server
    key = "development.key"            # insecure-sample: the development key (P-256, PEM)
    hardware_id = "00..."              # insecure-sample: 32 bytes that stand in for a chip

``auto`` takes the first hardware that is available (TSM, then CCNP, then a TPM), and never one of
the insecure kinds: those prove nothing about hardware and must be named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.attesters.kinds import KINDS
from attestation.config import InconsistentValues, choice, file_path, hexadecimal, option, text
from fedlearn.config import address

__all__ = ["ATTESTER_KINDS", "INSECURE_KINDS", "AttesterSettings"]

INSECURE_KINDS: Final = frozenset({"insecure-sample", "insecure-software-tpm"})
ATTESTER_KINDS: Final = ("auto", *(kind.name for kind in KINDS), *sorted(INSECURE_KINDS))

_ONLY_FOR: Final = {
    **{
        key: tuple(kind.name for kind in KINDS if key in kind.uses)
        for key in ("tcti", "socket", "address")
    },
    "key": ("insecure-sample",),
    "hardware_id": ("insecure-sample",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttesterSettings:
    """What makes evidence on this machine. A key that the kind does not use is refused.

    ``kind``         the hardware; ``auto`` takes what is available, and never an insecure kind
    ``tcti``         ``tpm``, ``azure``: how tpm2-tools reach the TPM
    ``socket``       ``ccnp``: the quote server's socket
    ``address``      ``coco``: the Attestation Agent's API server
    ``key``          ``insecure-sample``: the development key (P-256, PEM)
    ``hardware_id``  ``insecure-sample``: stands in for a chip
    """

    kind: str = option(choice(*ATTESTER_KINDS), default="auto")
    tcti: str = option(text(most=512), default="")
    socket: Path | None = option(file_path(), default=None)
    address: str = option(address(), default="")
    key: Path | None = option(file_path(), default=None)
    hardware_id: bytes = option(hexadecimal(32), default=b"")

    def __post_init__(self) -> None:
        for name, kinds in _ONLY_FOR.items():
            if getattr(self, name) and self.kind not in kinds:
                wanted = " or ".join(f'"{kind}"' for kind in kinds)
                raise InconsistentValues(((name,), f'only for kind = {wanted}, not "{self.kind}"'))

    @property
    def insecure(self) -> bool:
        """True when the evidence proves nothing about hardware."""
        return self.kind in INSECURE_KINDS
