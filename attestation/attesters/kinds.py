"""The kinds of attester that use hardware, one row each, the strongest first.

A kind is a module of this package with two functions: ``find() -> Found`` looks for what it needs
and opens nothing; ``open_attester(options: Options) -> Attester`` opens it. A new kind is such a
module and a row in :data:`KINDS`; the configuration, the command line and ``auto`` read the table.

The page is docs/adr/0024-kinds-of-attester.md.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from attestation.attesters import Attester

__all__ = ["KINDS", "Found", "Kind", "Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a kind is opened with. An empty value leaves the choice to the kind.

    ``state``    a private directory, the same for all processes that use one device
    ``scope``    whose measurements are ours, where one device serves several workloads (TPM)
    ``tcti``     how tpm2-tools reach a TPM
    ``socket``   a Unix socket that a server of this node listens on
    ``address``  ``host:port`` of a server in this pod
    """

    state: Path
    scope: str = ""
    tcti: str = ""
    socket: Path | None = None
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Whether one kind is available on this machine, and the reason."""

    kind: str
    present: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row: the value of ``attester.kind``, its module, and the other keys that it reads."""

    name: str
    module: str
    uses: tuple[str, ...] = ()

    def find(self) -> Found:
        """Look for what this kind needs. Nothing is opened."""
        return cast("Found", importlib.import_module(self.module).find())

    def open(self, options: Options) -> Attester:
        """Open the attester.

        :raises AttesterError: when it is not available, or does not work.
        """
        return cast("Attester", importlib.import_module(self.module).open_attester(options))


KINDS: Final = (
    Kind(name="tsm", module="attestation.attesters.tsm"),
    Kind(name="ccnp", module="attestation.attesters.ccnp", uses=("socket",)),
    Kind(name="coco", module="attestation.attesters.coco", uses=("address",)),
    Kind(name="azure", module="attestation.attesters.azure", uses=("tcti",)),
    Kind(name="tpm", module="attestation.attesters.tpm", uses=("tcti",)),
)
"""The order of ``auto`` is that of strength: a confidential VM's own firmware interface, then the
same through a server of the node, then through an agent of the pod, then Azure's vTPM under its
hardware report, then a TPM alone, which isolates nothing."""
