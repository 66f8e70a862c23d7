"""Finds what this machine can attest with, and opens it.

The order of ``auto`` is that of strength: a confidential VM's own firmware interface, then
the same through a server of the node, then through an agent of the pod, then Azure's vTPM
under its hardware report, then a TPM alone, which isolates nothing. Software evidence is
never found: it is asked for by name.
"""

from __future__ import annotations

import logging
import os
import socket as sockets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.attesters import Attester
from attestation.errors import AttesterError

__all__ = ["KINDS", "Found", "detect", "open_hardware"]

KINDS: Final = ("tsm", "ccnp", "coco", "azure", "tpm")
"""What :func:`open_hardware` opens, the strongest first."""

_CONNECT_S: Final = 0.5
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One kind: is it here, and why or why not."""

    kind: str
    present: bool
    why: str


def detect(
    *,
    reports: Path | None = None,
    ccnp_sockets: Sequence[Path] | None = None,
    coco_address: str = "",
    tpm_devices: Sequence[Path] = (Path("/dev/tpmrm0"), Path("/dev/tpm0")),
    azure_tag: Path = Path("/sys/class/dmi/id/chassis_asset_tag"),
) -> tuple[Found, ...]:
    """Look for each kind, the strongest first. Nothing is opened."""
    from attestation.attesters.coco import DEFAULT_ADDRESS
    from attestation.attesters.tsm import REPORTS

    device = next((path for path in tpm_devices if path.exists()), None)
    return (
        _tsm(reports or REPORTS),
        _ccnp(ccnp_sockets),
        _coco(coco_address or DEFAULT_ADDRESS),
        _azure(azure_tag, device),
        Found(
            kind="tpm",
            present=device is not None,
            why=f"{device} is there" if device else "there is no TPM device",
        ),
    )


def open_hardware(
    kind: str,
    *,
    state: Path,
    scope: str = "",
    tcti: str = "",
    socket: Path | None = None,
    address: str = "",
    report: Callable[[str], None] | None = None,
) -> Attester:
    """Open the attester ``kind``, or for ``auto`` the strongest that is here and works.

    ``state``   a private directory, the same for all processes that use one device
    ``scope``   whose measurements are ours, where one device serves several workloads (TPM)
    ``report``  is told in one line which was taken by ``auto``, and why; the log is, always

    :raises AttesterError: when it is not here; for ``auto`` it says why each is not.
    """
    if kind == "auto":
        return _strongest(state, scope, report)
    if kind == "tsm":
        from attestation.attesters.tsm import TsmAttester

        return TsmAttester(state / "tsm")
    if kind == "ccnp":
        from attestation.attesters.ccnp import CcnpAttester

        return CcnpAttester(socket)
    if kind == "coco":
        from attestation.attesters.coco import DEFAULT_ADDRESS, CocoAttester

        return CocoAttester(address or DEFAULT_ADDRESS)
    if kind in ("tpm", "azure"):
        from attestation.attesters.tpm import TpmAttester
        from attestation.attesters.tpm2_tools import DEFAULT_TCTI

        tpm = TpmAttester(state / "tpm", tcti=tcti or DEFAULT_TCTI, scope=scope)
        if kind == "tpm":
            return tpm
        from attestation.attesters.azure import AzureAttester

        return AzureAttester(state / "tpm", tcti=tcti or DEFAULT_TCTI, scope=scope)
    raise AttesterError(f"{kind!r} is none of auto, {', '.join(KINDS)}")


def _strongest(state: Path, scope: str, report: Callable[[str], None] | None) -> Attester:
    reasons: list[str] = []
    for found in detect():
        if not found.present:
            reasons.append(f"{found.kind}: {found.why}")
            continue
        try:
            attester = open_hardware(found.kind, state=state, scope=scope)
        except AttesterError as error:
            reasons.append(f"{found.kind}: {error}")
            continue
        passed = f" (not {'; not '.join(reasons)})" if reasons else ""
        line = f"attesting with {found.kind}: {found.why}{passed}"
        _LOG.info(line)
        if report is not None:
            report(line)
        return attester
    raise AttesterError(
        f"nothing here can attest: {'; '.join(reasons)}",
        hint='for development name an insecure kind, such as kind = "insecure-software-tpm"',
    )


def _tsm(reports: Path) -> Found:
    if not reports.is_dir():
        return Found(kind="tsm", present=False, why=f"{reports} is not there")
    if not os.access(reports, os.W_OK):
        return Found(kind="tsm", present=False, why=f"{reports} may not be written by this user")
    return Found(kind="tsm", present=True, why=f"{reports} is there")


def _ccnp(listed: Sequence[Path] | None) -> Found:
    from attestation.attesters.ccnp import SOCKETS

    for path in SOCKETS if listed is None else listed:
        if path.exists():
            return Found(kind="ccnp", present=True, why=f"{path} is there")
    return Found(kind="ccnp", present=False, why="no socket of a CCNP or CIMA server")


def _coco(address: str) -> Found:
    host, _, port = address.rpartition(":")
    try:
        with sockets.create_connection((host, int(port)), timeout=_CONNECT_S):
            return Found(kind="coco", present=True, why=f"something listens on {address}")
    except (OSError, ValueError):
        return Found(kind="coco", present=False, why=f"nothing listens on {address}")


def _azure(tag: Path, device: Path | None) -> Found:
    try:
        text = tag.read_text(errors="replace")[:64].strip()
    except OSError:
        text = ""
    if text != "7783-7084-3265-9085-8269-3286-77":
        return Found(kind="azure", present=False, why="not a virtual machine of Azure")
    if device is None:
        return Found(kind="azure", present=False, why="an Azure machine without a vTPM")
    return Found(kind="azure", present=True, why=f"an Azure machine with {device}")
