"""Simulated machines of sites, which share one real machine.

Each has a TPM of its own in software, or a development key. The endorsement key of a TPM is
read once, as an operator does with a real machine, and the invitation of its site names it; a
development key is pinned. Neither proves anything about hardware.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from attestation.evidence import Tee
from fedlearn.config.attester import device, open_attester
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.development_key import make_key
from fedlearn.errors import ConfigError

__all__ = ["TEES", "Machine", "TeeChoice", "choose_tee", "make_machine", "settings_of"]

TeeChoice = Literal["auto", "tpm", "sample"]
TEES: Final = ("auto", "tpm", "sample")
_KINDS: Final = {Tee.TPM: "insecure-software-tpm", Tee.SAMPLE: "insecure-sample"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine.

    ``state``        the folder of its attester
    ``anchor``       SHA-256 of the SPKI of its attestation key
    ``hardware_id``  the hardware id in its evidence; of a TPM, the SHA-256 of the SPKI of its
                     endorsement key, once its attestation key is proven
    """

    tee: Tee
    state: Path
    anchor: bytes
    hardware_id: bytes

    @property
    def pinned_id(self) -> bytes:
        """The hardware id in its evidence while its attestation key is only pinned."""
        return self.anchor if self.tee is Tee.TPM else self.hardware_id

    def table(self) -> dict[str, object]:
        """Return the ``[attester]`` table of this machine's configuration."""
        return {"kind": _KINDS[self.tee]}


def settings_of(tee: Tee) -> AttesterSettings:
    """Return the attester's settings for a simulated machine of the kind ``tee``."""
    return AttesterSettings(kind=_KINDS[tee])


def choose_tee(choice: TeeChoice) -> tuple[Tee, str]:
    """Return the kind of evidence of the machines, and a warning to show.

    :raises ConfigError: when software TPMs were requested and are not available.
    """
    from attestation.attesters.software_tpm import SoftwareTpm

    lacking = "" if choice == "sample" else SoftwareTpm.available()
    if choice == "tpm" and lacking:
        raise ConfigError(f"no software TPM: {lacking}", where="--tee", hint="use --tee sample")
    if choice == "sample" or lacking:
        why = f" ({lacking})" if lacking else ""
        return Tee.SAMPLE, (
            f"sample evidence{why}: a development key signs whatever a process states about "
            "itself; the policy of this run accepts it by name, and no other should"
        )
    return Tee.TPM, (
        "software TPMs: evidence is made, verified and appraised as with a chip, and proves "
        "nothing about hardware, because the administrator of this machine can read their keys"
    )


def make_machine(tee: Tee, state: Path) -> Machine:
    """Make a machine whose attester keeps its state in ``state``.

    :raises AttesterError: when the software TPM does not start.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if tee is Tee.SAMPLE:
        return _sample(state)
    from attestation.attesters.tpm import TpmAttester

    with device(settings_of(tee), state=state) as settings:
        attester = open_attester(settings, state=state)
        if not isinstance(attester, TpmAttester):
            raise TypeError("a software TPM is opened by the TPM attester")
        keys = attester.identity()
    return Machine(tee=tee, state=state, anchor=keys.ak_digest, hardware_id=keys.ek_digest)


def _sample(state: Path) -> Machine:
    return Machine(
        tee=Tee.SAMPLE,
        state=state,
        anchor=make_key(state),
        hardware_id=hashlib.sha256(str(state.resolve()).encode()).digest(),
    )
